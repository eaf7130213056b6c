"""The roofline model: how long a prefill and a decoded token take at least, every operation at its machine's limits.

    python -m llava_prumerge.efficiency roofline                       # the paper's cost table, cell by cell
    python -m llava_prumerge.efficiency roofline --preset honest       # the same question with the prompt held fixed
    python -m llava_prumerge.efficiency roofline --preset both         # the table's rows by both
    python -m llava_prumerge.efficiency roofline --preset honest --hardware H100 A100-80 --method METHOD --tokens 171

time = sum over operations of count / min(peak, count / bytes * bandwidth): each is bound by arithmetic or by memory,
none overlaps another, launching costs nothing. It is a floor to compare with; measured times lie above it.

`paper` follows the rules of the tool behind the table (`operations.tool_layer`). `honest` counts each tensor as often
as it is moved, weights at their real width, quantisation as of weights alone, and adds tower, projector and decoding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from llava_prumerge.efficiency import cost_table
from llava_prumerge.efficiency.conventions import head_flops, prefill_flops
from llava_prumerge.efficiency.errors import EfficiencyError, refuse
from llava_prumerge.efficiency.hardware import Hardware, all_hardware, hardware
from llava_prumerge.efficiency.memory import inference
from llava_prumerge.efficiency.operations import (
    HALF,
    Operation,
    Widths,
    batched,
    decode,
    prefill,
    projector,
    tool_prefill,
    tower,
)
from llava_prumerge.efficiency.options import MODEL, add_layout, amount, columns, counts_of, positive, shape_of
from llava_prumerge.efficiency.shapes import ModelShape, named_shapes
from llava_prumerge.efficiency.tokens import TEXT, TokenCounts, constant_counts
from llava_prumerge.ground.command import Parser

TOKENS = 40
"""Visual tokens of the honest preset where none are given: PruMerge's average in the paper."""
PRESETS = ("paper", "honest", "both")
PRECISIONS = {"fp16": HALF, "int8": Widths(1, 2, 2), "int4": Widths(0.5, 2, 2)}
"""Of the honest preset: only weights are quantised, and turned into 16 bits on the fly."""


def seconds(operations: Iterable[Operation], bandwidth: float, peak: float) -> float:
    """The model's time.

    Args:
        operations: one after the other.
        bandwidth: bytes/s.
        peak: operations/s.
    """
    return sum(item.times * item.count / min(peak, item.count / item.bytes * bandwidth) for item in operations)


def paper_seconds(shape: ModelShape, counts: TokenCounts, machine: Hardware, widths: Widths = HALF) -> float:
    """Prefill by LLM-Viewer's rules; it takes the INT8 peak as soon as nothing is wider than a byte."""
    peak = machine.int8 if max(widths) <= 1 else machine.fp16
    return seconds(tool_prefill(shape.language, counts.grouped(), widths), machine.bandwidth, peak)


def honest_seconds(
    shape: ModelShape,
    counts: TokenCounts,
    machine: Hardware,
    precision: str = "fp16",
    fused: bool = False,
    batch: int = 1,
    written: int = 1,
) -> dict[str, float]:
    """Seconds of each part for a batch of images, one per sequence.

    Args:
        shape: of the model.
        counts: tokens of each sequence.
        machine: it runs on.
        precision: of the decoder's weights, see `PRECISIONS`.
        fused: FlashAttention in place of attention that writes its scores.
        batch: sequences.
        written: the decoded token is this one of the answer.
    """
    widths, grouped = PRECISIONS[precision], counts.grouped()
    parts = {
        "tower": tower(shape.vision, counts.tower, fused),
        "projector": projector(shape.projector, counts.projected),
        "prefill": prefill(shape.language, grouped, widths, fused),
        "decode": decode(shape.language, grouped, widths, fused, written),
    }
    return {
        part: seconds(batched(operations, batch), machine.bandwidth, machine.fp16) for part, operations in parts.items()
    }


def products(shape: ModelShape, counts: TokenCounts) -> float:
    """True FLOPs of a prefill's matrix products, the head at the last position included."""
    return prefill_flops(shape.language, counts.lengths) + head_flops(shape.language)


def floors(shape: ModelShape, counts: TokenCounts, machine: Hardware, precision: str = "fp16") -> tuple[float, float]:
    """Seconds a prefill of one sequence needs for its matrix products at the peak, and for reading the weights once.

    The larger binds; whoever measures less has measured something else.
    """
    language = shape.language
    matrices = sum(inputs * outputs for inputs, outputs in language.linear)
    weights = PRECISIONS[precision].weights * language.layers * matrices + 2 * language.hidden * language.vocabulary
    return products(shape, counts) / machine.fp16, weights / machine.bandwidth


def both_presets(as_json: bool = False) -> str:
    """The rows of the paper's table by its own rules and by the honest ones, on the V100 at batch 1."""
    machine, rows = hardware("V100"), list[dict[str, Any]]()
    for model, precision, length in cost_table.PUBLISHED:
        shape, dtype = named_shapes()[model], precision.lower()
        work, time, moved, _ = cost_table.tool_numbers(shape.language, precision, length)
        counts = constant_counts(shape, None if length == cost_table.FULL else TOKENS)
        paper = {"tokens": length, "tera_flops": work, "prefill_ms": time, "moved_gb": moved}
        honest = {
            "tokens": counts.lengths[0],
            "tera_flops": products(shape, counts) / 1e12,
            "prefill_ms": 1e3 * honest_seconds(shape, counts, machine, dtype)["prefill"],
            "held_gb": sum(inference(shape, counts, dtype, fused=False).values()) / 1e9,
        }
        rows.append({"model": model, "precision": precision, "paper": paper, "honest": honest})
    if as_json:
        return json.dumps(rows)
    table = [
        (
            "",
            "",
            "paper: S",
            "FLOPs (T)",
            "ms",
            "gain",
            "moved (GB)",
            "honest: S",
            "FLOPs (T)",
            "ms",
            "gain",
            "held (GB)",
        )
    ]
    for at, row in enumerate(rows):
        cells: list[str] = []
        for preset in ("paper", "honest"):
            tokens, work, time, memory = row[preset].values()
            before = rows[at - 1][preset]["prefill_ms"]
            cells += [
                str(tokens),
                f"{work:.2f}",
                f"{time:.1f}",
                f"{before / time:.1f}" if at % 2 else "",
                f"{memory:.1f}",
            ]
        table.append((row["model"], row["precision"], *cells))
    return columns(table, left=2)


def add_arguments(parser: Parser) -> None:
    """The command's options."""
    add_layout(parser)
    parser.add_argument("--preset", default="paper", help="paper, honest or both (default: %(default)s)")
    parser.add_argument(
        "--hardware", nargs="+", metavar="NAME", help=f"{', '.join(all_hardware())} (default: all; table: V100)"
    )
    parser.add_argument("--dtype", default="fp16", help="honest: fp16, int8 or int4 weights (default: %(default)s)")
    parser.add_argument(
        "--fused", action="store_true", help="honest: attention that never writes its scores (FlashAttention)"
    )
    parser.add_argument("--batch", type=int, default=1, help="honest: sequences at once (default: %(default)s)")


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    if given.preset not in PRESETS:
        raise refuse("preset", given.preset, PRESETS)
    if given.dtype not in PRECISIONS:
        raise refuse("dtype", given.dtype, PRECISIONS)
    positive(given.batch, "--batch")
    machines = [hardware(name) for name in given.hardware or all_hardware()]
    if given.preset != "honest" and (given.dtype != "fp16" or given.fused or given.batch != 1):
        raise EfficiencyError(
            "--dtype, --fused and --batch are the honest preset's; the paper's table has its own rules"
        )
    chosen = (given.tokens, given.method, given.per_layer, given.hardware)
    asked = any(item is not None for item in chosen) or (given.model, given.text) != (MODEL, TEXT)
    if given.preset == "both":
        if asked:
            raise EfficiencyError("preset both is about the paper's table and takes no layout; name paper or honest")
        return both_presets(given.json)
    if given.preset == "paper" and not asked:
        return cost_table.as_json() if given.json else cost_table.as_text()
    shape = shape_of(given)
    if given.tokens is None and not given.method and not given.per_layer:
        given.tokens = TOKENS
    counts = counts_of(given, shape)
    if given.preset == "paper":
        return _compare_paper(given, shape, counts, machines)
    return _compare_honest(given, shape, counts, machines)


def _compare_paper(given: argparse.Namespace, shape: ModelShape, counts: TokenCounts, machines: list[Hardware]) -> str:
    full, rows = constant_counts(shape, None, counts.text), list[dict[str, Any]]()
    for machine in machines:
        times = [1e3 * paper_seconds(shape, item, machine) for item in (full, counts)]
        rows.append({"hardware": machine.name, "full_ms": times[0], "ms": times[1], "gain": times[0] / times[1]})
    if given.json:
        return json.dumps(
            {"preset": "paper", "model": shape.name, "text": counts.text, "visual": counts.visual, "rows": rows}
        )
    table: list[tuple[str, ...]] = [("paper's rules", "prefill, all", "reduced", "gain")]
    table += [
        (row["hardware"], f"{row['full_ms']:.1f} ms", f"{row['ms']:.1f} ms", f"{row['gain']:.1f}") for row in rows
    ]
    return f"{_title(shape, counts)}\n{columns(table)}"


def _compare_honest(given: argparse.Namespace, shape: ModelShape, counts: TokenCounts, machines: list[Hardware]) -> str:
    full, rows = constant_counts(shape, None, counts.text), list[dict[str, Any]]()
    settings = {"precision": given.dtype, "fused": given.fused, "batch": given.batch}
    for machine in machines:
        before, after = (honest_seconds(shape, item, machine, **settings) for item in (full, counts))
        least = floors(shape, counts, machine, given.dtype)
        rows.append({"hardware": machine.name, "full": before, "reduced": after, "floors": least})
    if given.json:
        head: dict[str, Any] = {"preset": "honest", "model": shape.name, "text": counts.text, "visual": counts.visual}
        return json.dumps({**head, **settings, "seconds": rows})
    table: list[tuple[str, ...]] = [
        ("", "tower", "projector", "prefill", "gain", "to first token", "gain", "decode", "gain", "floors")
    ]
    for row in rows:
        before, after = row["full"], row["reduced"]
        first = [sum(times[part] for part in ("tower", "projector", "prefill")) for times in (before, after)]
        table.append(
            (
                row["hardware"],
                _pair(before["tower"], after["tower"]),
                _pair(before["projector"], after["projector"]),
                _pair(before["prefill"], after["prefill"]),
                f"{before['prefill'] / after['prefill']:.1f}",
                _pair(*first),
                f"{first[0] / first[1]:.1f}",
                _pair(before["decode"], after["decode"]),
                f"{before['decode'] / after['decode']:.2f}",
                f"{1e3 * row['floors'][0]:.1f} | {1e3 * row['floors'][1]:.1f}",
            )
        )
    return "\n".join(
        [
            _title(shape, counts),
            f"{given.dtype} weights, batch {given.batch}, attention {'fused' if given.fused else 'not fused'}; "
            f"all {full.visual[0]} visual tokens > reduced, in ms",
            columns(table),
            f"floors of the reduced prefill, one sequence: {amount(products(shape, counts))} of matrix products "
            "at the peak | weights read once",
        ]
    )


def _title(shape: ModelShape, counts: TokenCounts) -> str:
    return f"{shape.name}: {counts.told(shape.vision.patches)}"


def _pair(before: float, after: float) -> str:
    return (
        f"{1e3 * before:.1f} > {1e3 * after:.1f}" if 1e3 * after >= 0.1 else f"{1e3 * before:.2f} > {1e3 * after:.2f}"
    )
