"""Stability: Kendall's tau between the rankings of visual tokens that any two decoder layers give, on a few questions.

    python -m llava_prumerge.search.stability --model PATH --questions FILE.jsonl --images DIR [--out stability.png]
        [--samples 64] [--rows last|text] [--batch-size 4] [--template vicuna_v1] [--dtype float32] [--device cpu]

The finding that rank schedules rest on (Zhao et al., CVPR 2025, arXiv 2412.00556): rankings agree between all layers
but the first; second-hand notes have tau of at least 0.7. A layer's ranking is by the attention from the prompt in the
full model, as the pruner `rank_schedule` reads it. Printed and drawn (PNG) is the mean over the questions; the
numbers are written beside the picture (JSON).
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from llava_prumerge.ground.files import write_json
from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.settings import Settings
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration, decoder_shape
from llava_prumerge.ops.select import ROWS, prompt_attention
from llava_prumerge.search.calibration import prepare, run_search, search_parser
from llava_prumerge.search.comparison import pruner_in_place, to_model
from llava_prumerge.search.drawing import draw_matrix


class RankWatcher(DecoderPruner):
    """Drops nothing, and remembers what each layer thinks of the visual tokens.

    Attributes:
        scores: of each layer so far, [B, L].
        is_image: [B, L] bool.
    """

    name = "rank_watcher"

    def __init__(self, shape: DecoderShape, rows: str = "last") -> None:
        super().__init__(Settings(), shape, range(shape.layers))
        self.rows = rows
        self.scores: list[Tensor] = []
        self.is_image = torch.empty(0, 0, dtype=torch.bool)

    def forward(self, layer: int, tokens: DecoderTokens) -> None:
        """Watch. Layers come in order; the first starts afresh."""
        if layer == 0:
            self.scores, self.is_image = [], tokens.layout.is_image
        self.scores.append(prompt_attention(tokens.attention, tokens.layout, layer, self.rows))


def kendall_tau(scores: Tensor) -> Tensor:
    """Kendall's tau-b between every two rows: agreeing pairs less disagreeing ones, over pairs that are not tied.

    Args:
        scores: [R, P].

    Returns:
        [R, R] float64 in [-1, 1]; 0 where a row ranks nothing.
    """
    signs = (scores[:, :, None] - scores[:, None, :]).sign().flatten(1).float()  # [R, P * P]
    agreement = (signs @ signs.T).double()
    untied = (signs.double().square().sum(dim=1)).clamp(min=1)
    return agreement / (untied[:, None] * untied).sqrt()


@torch.inference_mode()
def layer_agreement(
    model: PruMergeLlavaForConditionalGeneration, batches: Sequence[dict[str, Tensor]], rows: str = "last"
) -> Tensor:
    """Tau between layers' rankings for each question, in the model without its pruner. -> [samples, layers, layers]"""
    watcher = RankWatcher(decoder_shape(model.config), rows)
    found = []
    for batch in tqdm(batches, desc="stability", unit="batch", disable=not sys.stderr.isatty()):
        with pruner_in_place(model, watcher):
            model.model(**to_model(model, batch), use_cache=False)
        scores = torch.stack(watcher.scores, dim=1)  # [B, layers, L]
        found += [kendall_tau(scores[row][:, seen]).cpu() for row, seen in enumerate(watcher.is_image)]
    return torch.stack(found)


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
