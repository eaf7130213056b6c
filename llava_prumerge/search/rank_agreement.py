"""How alike a model's layers rank visual tokens: the watcher of their scores, and Kendall's tau between layers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.settings import Settings
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration, decoder_shape
from llava_prumerge.ops.select import prompt_attention
from llava_prumerge.search.comparison import pruner_in_place, to_model


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
