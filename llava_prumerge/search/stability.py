"""Stability: Kendall's tau between the rankings of visual tokens that any two decoder layers give, on a few questions.

    python -m llava_prumerge.search.stability --model PATH --questions FILE.jsonl --images DIR [--out stability.png]
        [--samples 64] [--rows last|text] [--batch-size 4] [--template vicuna_v1] [--dtype float32] [--device cpu]

The finding that rank schedules rest on (Zhao et al., CVPR 2025, arXiv 2412.00556): rankings agree between all layers
but the first; second-hand notes have tau of at least 0.7. A layer's ranking is by the attention from the prompt in the
full model, as pruners with a rate for each layer read it. Printed and drawn (PNG) is the mean over the questions; the
numbers are written beside the picture (JSON).
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.ground.files import write_json
from llava_prumerge.search.command import ROWS, run_search, search_parser

if TYPE_CHECKING:
    from torch import Tensor


def table(matrix: Tensor) -> str:
    """A matrix [layers, layers] as text."""
    head = "layer " + "".join(f"{layer:6d}" for layer in range(len(matrix)))
    lines = [f"{layer:5d} " + "".join(f"{value:6.2f}" for value in row) for layer, row in enumerate(matrix.tolist())]
    return "\n".join([head, *lines])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = search_parser("stability", __doc__, Path("runs/search/stability.png"), 64)
    parser.add_argument("--rows", choices=ROWS, default="last", help="rows of the prompt that rank")
    return parser.parse_args(arguments)


def search(given: argparse.Namespace) -> str:
    """Measure, print and draw. -> what was found"""
    import torch

    from llava_prumerge.search.calibration import prepare
    from llava_prumerge.search.drawing import draw_matrix
    from llava_prumerge.search.rank_agreement import layer_agreement

    model, batches, number = prepare(given)
    matrix = layer_agreement(model, batches, given.rows).mean(dim=0)
    print(table(matrix))
    draw_matrix(given.out.with_suffix(".png"), matrix, f"Kendall's tau of token rankings, {number} questions")
    record = {"model": given.model, "questions": number, "rows": given.rows, "tau": matrix.tolist()}
    write_json(given.out.with_suffix(".json"), record, indent=None)
    later = matrix[1:, 1:]
    apart = ~torch.eye(len(later), dtype=torch.bool)
    summary = f"layer 0 and the others {matrix[0, 1:].mean():.3f}"
    if apart.any():
        summary += f"; the others among each other {later[apart].mean():.3f}, at least {later[apart].min():.3f}"
    return f"mean tau: {summary}: {given.out.with_suffix('.png')}"


main = run_search(search, parse)

if __name__ == "__main__":
    sys.exit(main())
