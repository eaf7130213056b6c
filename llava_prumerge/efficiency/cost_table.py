"""The cost table of the PruMerge paper, and what the roofline model gives for each of its 32 cells.

Published (project page, images/efficency.png): Tesla V100, batch 1. The authors name a roofline model; that it is
LLM-Viewer at commit 781c831, with S = 700 tokens for image and prompt together and S = 70 with PruMerge, is our
finding, as these rules meet 31 of 32 cells. Two columns do not hold what their names say: "Total Memory" is all bytes
moved during a prefill, and "Storing Act." those written that are no cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from llava_prumerge.efficiency.hardware import hardware
from llava_prumerge.efficiency.operations import HALF, Widths, tool_layer, tool_prefill
from llava_prumerge.efficiency.options import columns
from llava_prumerge.efficiency.shapes import LanguageShape, named_shapes

COLUMNS = ("FLOPs (T)", "prefill (ms)", "total memory (GB)", "storing act. (GB)")
FULL, REDUCED = 700, 70
QUARTER = Widths(0.5, 0.5, 0.5)
PUBLISHED: dict[tuple[str, str, int], tuple[str, str, str, str]] = {
    ("llava-1.5-7b", "FP16", FULL): ("9.3", "88.6", "23.3", "4.60"),
    ("llava-1.5-7b", "FP16", REDUCED): ("0.91", "15.3", "13.7", "0.28"),
    ("llava-1.5-7b", "INT4", FULL): ("2.3", "151.6", "5.9", "1.20"),
    ("llava-1.5-7b", "INT4", REDUCED): ("0.28", "14.9", "3.5", "0.07"),
    ("llava-1.5-13b", "FP16", FULL): ("18.2", "170.5", "41.6", "7.30"),
    ("llava-1.5-13b", "FP16", REDUCED): ("1.80", "29.5", "26.6", "0.44"),
    ("llava-1.5-13b", "INT4", FULL): ("4.6", "294.9", "10.5", "1.80"),
    ("llava-1.5-13b", "INT4", REDUCED): ("0.45", "29.0", "6.8", "0.11"),
}
"""(model, precision, tokens) -> the cells in the order of `COLUMNS`, as printed."""
MISPRINT = (("llava-1.5-7b", "INT4", REDUCED), 0)
"""The one cell that is not met: a quarter of the FP16 row's 0.91 is 0.23; 0.28 is that row's last cell."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        row, column: where; see `PUBLISHED` and `COLUMNS`.
        published: as printed.
        value: of the model, not rounded.
    """

    row: tuple[str, str, int]
    column: int
    published: str
    value: float

    @property
    def printed(self) -> Decimal:
        """The model's value as the table would have it."""
        return printed(self.value)

    @property
    def agrees(self) -> bool:
        """Whether that is what the table has; 4.60 is 4.6, see `printed`."""
        return self.printed == Decimal(self.published)


def printed(value: float) -> Decimal:
    """As the table rounds: to one decimal, below 1 to two; the last zero of its 4.60, 1.20, 7.30, 1.80 is no digit."""
    exact = Decimal(repr(round(value, 9)))
    return exact.quantize(Decimal("0.1") if exact >= 1 else Decimal("0.01"), rounding=ROUND_HALF_UP)


def tool_numbers(shape: LanguageShape, precision: str, tokens: int) -> tuple[float, float, float, float]:
    """A row by the tool's rules, units as in `COLUMNS`.

    INT4 is 4 bits for weights, activations and cache, and runs at the V100's INT8 peak, half its FP16 one: slower, and
    FLOPs are the FP16 row's printed number divided by 4.
    """
    machine = hardware("V100")
    half = precision == "FP16"
    operations = tool_prefill(shape, [(tokens, shape.layers)], HALF if half else QUARTER)
    work = sum(item.count * item.times for item in operations) / 1e12
    peak = machine.fp16 if half else machine.int8
    time = sum(item.times * max(item.count / peak, item.bytes / machine.bandwidth) for item in operations)
    moved = sum(item.bytes * item.times for item in operations)
    written = sum(item.written * item.times for item in operations)
    return work if half else float(printed(work)) / 4, 1e3 * time, moved / 1e9, written / 1e9


def cells() -> list[Cell]:
    """All 32, row by row."""
    found = []
    for row, published in PUBLISHED.items():
        model, precision, tokens = row
        values = tool_numbers(named_shapes()[model].language, precision, tokens)
        found += [Cell(row, column, text, value) for column, (text, value) in enumerate(zip(published, values))]
    return found


def tool_footprint(shape: LanguageShape, tokens: int, widths: Widths = HALF) -> float:
    """Bytes the tool reports as memory consumption: weights without the head, cache, and one layer's results.

    Not in the paper's table, whose "total memory" is traffic.
    """
    operations = tool_layer(shape, tokens, widths)
    weights, cache = (sum(getattr(item, kind) for item in operations) for kind in ("weights", "cache_written"))
    return shape.layers * (weights + cache) + sum(item.written for item in operations)


def as_json() -> str:
    """One object with every cell."""
    found = cells()
    listed = [
        {
            "model": cell.row[0],
            "precision": cell.row[1],
            "tokens": cell.row[2],
            "column": COLUMNS[cell.column],
            "published": cell.published,
            "value": cell.value,
            "agrees": cell.agrees,
        }
        for cell in found
    ]
    return json.dumps({"agree": sum(cell.agrees for cell in found), "of": len(found), "cells": listed})


def as_text() -> str:
    """The table, published beside computed."""
    found = cells()
    head = ("model", "precision", "S", *(f"{name}: printed | model" for name in COLUMNS))
    rows: list[tuple[str, ...]] = [head]
    for row in PUBLISHED:
        shown = []
        for cell in (cell for cell in found if cell.row == row):
            shown.append(f"{cell.published} | {cell.value:.3f}" + ("" if cell.agrees else " (!)"))
        rows.append((row[0], row[1], str(row[2]), *shown))
    wrong = [cell for cell in found if not cell.agrees]
    notes = [f"{len(found) - len(wrong)} of {len(found)} cells agree as printed."]
    for cell in wrong:
        above = PUBLISHED[(cell.row[0], "FP16", cell.row[2])][cell.column]
        notes.append(
            f"(!) {cell.row[0]} {cell.row[1]}, S = {cell.row[2]}, {COLUMNS[cell.column]}: printed {cell.published}, "
            f"the model gives {cell.printed}, a quarter of the FP16 row's {above}; it appears to be a misprint."
        )
    notes += [
        "Rounding: one decimal, below 1 two; the last zero of 4.60, 1.20, 7.30 and 1.80 is padding, not a digit.",
        "INT4 FLOPs are the FP16 cells as printed, divided by 4 (18.2 / 4 = 4.55, printed 4.6; 18.17 / 4 gives 4.5).",
        "Total memory is all bytes moved, storing act. those written outside the cache; a prompt of 40 tokens beside",
        "576 and 40 visual ones would make S = 616 and 80. See docs/efficiency.md.",
    ]
    return "\n".join([columns(rows, left=2), "", *notes])
