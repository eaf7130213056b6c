"""The roofline model: every cell of the paper's table, the honest preset, and the limits it has to respect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llava_prumerge.efficiency.cost_table import COLUMNS, MISPRINT, PUBLISHED, Cell, cells, printed, tool_footprint
from llava_prumerge.efficiency.hardware import all_hardware, hardware
from llava_prumerge.efficiency.operations import HALF, Widths, decode, prefill, tool_prefill
from llava_prumerge.efficiency.roofline import floors, honest_seconds, paper_seconds, seconds
from llava_prumerge.efficiency.shapes import named_shapes
from llava_prumerge.efficiency.tokens import constant_counts, layered_counts

SEVEN = named_shapes()["llava-1.5-7b"]
FULL, REDUCED = constant_counts(SEVEN), constant_counts(SEVEN, 40)


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{'-'.join(map(str, cell.row))}-{COLUMNS[cell.column]}")
def test_every_cell_of_the_papers_table(cell: Cell) -> None:
    if (cell.row, cell.column) == MISPRINT:
        assert (cell.published, str(cell.printed)) == ("0.28", "0.23")
    else:
        assert cell.agrees, f"{cell.published} is printed, the model gives {cell.value}"


def test_the_table_has_32_cells_and_31_agree() -> None:
    assert len(cells()) == 32 == len(PUBLISHED) * len(COLUMNS)
    assert sum(cell.agrees for cell in cells()) == 31


def test_rounding_can_tell_neighbours_apart() -> None:
    assert [str(printed(value)) for value in (23.348, 4.55, 0.2275, 0.905, 294.95)] == [
        "23.3",
        "4.6",
        "0.23",
        "0.91",
        "295.0",
    ]
    assert not Cell(("llava-1.5-7b", "FP16", 700), 1, "88.7", 88.614).agrees


@pytest.mark.parametrize(
    ("name", "full", "reduced"), [("V100", 77.5, 15.4), ("A100-40", 29.2, 8.9), ("H100", 9.9, 4.5)]
)
def test_the_tools_rules_with_a_fixed_prompt(name: str, full: float, reduced: float) -> None:
    machine = hardware(name) if name != "H100" else replace(hardware(name), bandwidth=3072e9)  # as LLM-Viewer has it
    assert 1e3 * paper_seconds(SEVEN, FULL, machine) == pytest.approx(full, abs=0.05)
    assert 1e3 * paper_seconds(SEVEN, REDUCED, machine) == pytest.approx(reduced, abs=0.05)


def test_the_footprint_hardly_changes() -> None:
    assert tool_footprint(SEVEN.language, 616) == pytest.approx(13.40e9, abs=0.005e9)
    assert tool_footprint(SEVEN.language, 80) == pytest.approx(13.00e9, abs=0.005e9)


def test_the_honest_preset_moves_every_weight_once_and_the_cache_as_often_as_it_is_used() -> None:
    operations = prefill(SEVEN.language, FULL.grouped(), HALF, fused=False)
    total = {kind: sum(getattr(item, kind) * item.times for item in operations) for kind in ("weights", "cache_read")}
    language = SEVEN.language
    norms = (2 * language.layers + 1) * language.hidden
    embedding = language.vocabulary * language.hidden
    assert total["weights"] == 2 * (language.parameters - norms - embedding)
    keys_and_values = 2 * 616 * 4096 * 2 * 32
    assert total["cache_read"] == keys_and_values
    tool = sum(item.cache_read * item.times for item in tool_prefill(language, FULL.grouped(), HALF))
    assert tool == 1.5 * keys_and_values
    step = decode(language, FULL.grouped(), HALF, fused=False)
    assert sum(item.cache_read * item.times for item in step) == keys_and_values * 617 / 616


def test_honest_differs_from_the_papers_rules_by_little_and_from_its_prompts_by_much() -> None:
    machine = hardware("V100")
    for counts in (FULL, REDUCED):
        ours = honest_seconds(SEVEN, counts, machine)["prefill"]
        assert ours == pytest.approx(paper_seconds(SEVEN, counts, machine), rel=0.04)
    full, reduced = (honest_seconds(SEVEN, counts, machine) for counts in (FULL, REDUCED))
    assert full["prefill"] / reduced["prefill"] == pytest.approx(5.0, abs=0.1)
    assert full["tower"] == reduced["tower"]
    assert 1 < full["decode"] / reduced["decode"] < 1.025  # the weights are read for every token


@pytest.mark.parametrize(
    ("tokens", "name", "compute", "weights"),
    [
        (576, "V100", 73.0, 14.7),
        (576, "A100-80", 26.2, 6.5),
        (576, "H100", 8.3, 3.9),
        (576, "H200", 8.3, 2.8),
        (144, "V100", 21.4, 14.7),
        (64, "A100-80", 4.3, 6.5),
        (32, "H100", 0.9, 3.9),
    ],
)
def test_floors(tokens: int, name: str, compute: float, weights: float) -> None:
    found = floors(SEVEN, constant_counts(SEVEN, tokens), hardware(name))
    assert [1e3 * value for value in found] == pytest.approx([compute, weights], abs=0.051)


@pytest.mark.parametrize("name", list(all_hardware()))
@pytest.mark.parametrize("fused", [False, True])
def test_no_prefill_is_under_a_floor(name: str, fused: bool) -> None:
    machine = hardware(name)
    for tokens in (0, 40, 144, 576):
        counts = constant_counts(SEVEN, tokens)
        time = honest_seconds(SEVEN, counts, machine, fused=fused)["prefill"]
        compute, weights = floors(SEVEN, counts, machine)
        if not fused:  # the floor counts all pairs, a fused kernel half of them
            assert time >= compute
        assert time >= weights


def test_precision_fusion_and_batch_act() -> None:
    machine = hardware("A100-80")
    plain = honest_seconds(SEVEN, REDUCED, machine)
    four = honest_seconds(SEVEN, REDUCED, machine, precision="int4")
    assert floors(SEVEN, REDUCED, machine, "int4")[1] < floors(SEVEN, REDUCED, machine)[1] / 3
    assert four["decode"] < plain["decode"] / 3 and four["tower"] == plain["tower"]
    assert honest_seconds(SEVEN, FULL, machine, fused=True)["prefill"] < honest_seconds(SEVEN, FULL, machine)["prefill"]
    many = honest_seconds(SEVEN, REDUCED, machine, batch=32)
    assert many["decode"] < 2 * plain["decode"]  # weights are shared
    assert many["prefill"] > 8 * plain["prefill"]
    assert paper_seconds(SEVEN, FULL, hardware("V100"), Widths(0.5, 0.5, 0.5)) > paper_seconds(
        SEVEN, FULL, hardware("V100")
    )


def test_time_is_bound_by_the_slower_of_arithmetic_and_memory() -> None:
    operations = tool_prefill(SEVEN.language, FULL.grouped(), HALF)
    by_hand = sum(item.times * max(item.count / 1e14, item.bytes / 1e12) for item in operations)
    assert seconds(operations, 1e12, 1e14) == pytest.approx(by_hand)


def test_layers_with_fewer_tokens_cost_less() -> None:
    machine = hardware("V100")
    part = honest_seconds(SEVEN, layered_counts(SEVEN, "2x576,30x144"), machine)["prefill"]
    reduced = honest_seconds(SEVEN, constant_counts(SEVEN, 144), machine)["prefill"]
    full = honest_seconds(SEVEN, FULL, machine)["prefill"]
    assert part == pytest.approx((2 * full + 30 * reduced) / 32, rel=1e-3)
