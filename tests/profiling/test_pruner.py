"""A pruner's own work: what the benchmark measures, and that no matrix of tokens by tokens is ever formed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.shapes import LanguageShape, ModelShape, VisionShape
from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.registry import build_pruner, method_names
from llava_prumerge.methods.settings import Settings
from llava_prumerge.profiling import pruner as benchmark

SIDE = 16
SMALL = ModelShape(
    "small",
    VisionShape(blocks=2, run=1, width=8, intermediate=8, heads=1, image=2 * SIDE, patch=2),
    LanguageShape(layers=4, hidden=16, intermediate=16, heads=4, kv_heads=2, head_width=4, vocabulary=16),
)
LENGTH = SIDE * SIDE + benchmark.TEXT_BEFORE + benchmark.TEXT_AFTER
VARIANTS: dict[str, dict[str, Any]] = {name: {"name": name} for name in method_names(DecoderPruner)}
VARIANTS |= {
    "rank_schedule text": {"name": "rank_schedule", "rows": "text"},
    "atp_llava given": {"name": "atp_llava", "axis": "given"},
    "dart many": {"name": "dart", "pivots": 12, "text_pivots": 12},
}


class Squares(TorchDispatchMode):
    """Notes every tensor two of whose sides number tokens: all of the sequence, or nearly all of its visual ones.

    The model's own widths are smaller, so that they are none of these.
    """

    def __init__(self, visual: int, length: int) -> None:
        super().__init__()
        self.sides, self.found = range(math.ceil(0.8 * visual), length + 1), []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and sum(side in self.sides for side in value.shape) >= 2:
                self.found.append((function.overloadpacket.__name__, tuple(value.shape)))
        return result


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    torch.manual_seed(0)
    yield benchmark.build_model(SMALL)


def squares_of(model: torch.nn.Module, pruner: DecoderPruner, training: bool = False) -> tuple[list[Any], int]:
    """Squares that a pruner forms in a real forward pass, and how often it acted."""
    decoder, found, acted = model.model.language_model, [], 0
    plain = pruner.forward

    def watched(layer: int, tokens: DecoderTokens) -> Tensor | None:
        nonlocal acted
        visual = int(tokens.layout.is_image.sum(dim=1).amax())
        assert visual >= 32
        with Squares(visual, tokens.layout.is_image.shape[1]) as mode:
            keep = plain(layer, tokens)
            if keep is not None and keep.dtype == torch.bool:
                tokens.layout.compact(keep, tokens.hidden)
        found.extend(mode.found)
        acted += keep is not None
        return keep

    pruner.forward = watched
    decoder.pruner = pruner
    pruner.train(training)
    try:
        model(**benchmark.make_prompt(SMALL, 2), use_cache=not training)
    finally:
        decoder.pruner = None
    return found, acted


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_no_full_attention_matrix_is_formed(model: torch.nn.Module, name: str, training: bool) -> None:
    torch.manual_seed(1)
    found, acted = squares_of(model, build_pruner(VARIANTS[name], DecoderShape(4, 16, 4, SIDE * SIDE)), training)
    assert acted and found == []


def test_a_full_attention_matrix_would_be_seen(model: torch.nn.Module) -> None:
    class Wasteful(DecoderPruner):
        name = "wasteful"

        def forward(self, layer: int, tokens: DecoderTokens) -> Tensor:
            received = (tokens.queries(layer - 1) @ tokens.keys(layer - 1).transpose(2, 3)).softmax(-1).mean((1, 2))
            return ~tokens.layout.is_image | (received > received.mean())

    found, _ = squares_of(model, Wasteful(Settings(), DecoderShape(4, 16, 4, SIDE * SIDE), (1,)))
    assert any(shape[-2:] == (LENGTH, LENGTH) for _, shape in found)


def test_a_row_says_what_was_measured(model: torch.nn.Module) -> None:
    row = benchmark.measure(model, SMALL, {"name": "fastv", "layer": 1, "keep_ratio": 0.5}, batch=2, repeats=3)
    assert row["tokens"] == [LENGTH, LENGTH - SIDE * SIDE // 2] and row["before_layer"] == 1 and row["drops"] == 1
    shares = [100 * row["own_ms"][own] / row["layer_ms"][layer] for own, layer in (("q1", "q3"), ("q3", "q1"))]
    assert shares[0] * 0.5 < row["share_percent"] < shares[1] * 2 and row["own_ms"]["median"] > 0
    assert row["share_percent"] == pytest.approx(row["share"]["median"], rel=1e-3)
    assert model.model.language_model.pruner is None


def test_own_work_is_what_lies_between_layers(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the pruner moves, all time is its own."""
    now = 0.0

    class Slow(DecoderPruner):
        name = "slow"

        def forward(self, layer: int, tokens: DecoderTokens) -> Tensor:
            nonlocal now
            now += 0.25
            return ~tokens.layout.is_image

    monkeypatch.setattr(benchmark.time, "process_time", lambda: now)
    monkeypatch.setattr(benchmark, "build_pruner", lambda block, shape: Slow(Settings(), shape, (2,)))
    model.model.language_model.pruner = Slow(Settings(), DecoderShape(4, 16, 4, SIDE * SIDE), (2,))
    with benchmark.Stopwatch(model.model.language_model) as watch:
        model(**benchmark.make_prompt(SMALL, 1))
    assert (watch.gap(1), watch.gap(2), watch.layer(1), watch.layer(2)) == (0.0, 0.25, 0.0, 0.0)
    model.model.language_model.pruner = None


def test_a_method_that_drops_nothing_has_no_row(model: torch.nn.Module) -> None:
    with pytest.raises(EfficiencyError, match="fastv drops nothing in 4 layers"):
        benchmark.measure(model, SMALL, {"name": "fastv", "layer": 1, "keep_ratio": 1.0}, batch=1, repeats=1)


def test_the_command_ends_with_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "model_shape", lambda name: SMALL)
    benchmark.benchmark(["--models", "small", "--batch", "1", "2", "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = method_names(DecoderPruner)
    assert [(row["method"], row["batch"]) for row in result["rows"]] == [(n, b) for b in (1, 2) for n in names]
    assert result["worst_percent"] == max(row["share_percent"] for row in result["rows"])


@pytest.mark.slow
def test_share_of_a_7b_shaped_layer() -> None:
    result = benchmark.benchmark(["--models", "llava-1.5-7b", "--repeats", "1"])
    assert result["worst_percent"] <= benchmark.TARGET_PERCENT
