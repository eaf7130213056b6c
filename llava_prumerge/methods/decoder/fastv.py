"""FastV: after layer K, image tokens that receive little attention from the last token are dropped.

An Image is Worth 1/2 Tokens After Layer 2, Chen et al., ECCV 2024 (arXiv 2403.06764). The text ranks by attention received from all
later tokens, the authors' code by the last token's row, averaged over heads; ours is the code's rule. In training,
where the answer follows, the last token is that of the prompt. The row is computed from the previous layer's own
projections, so any attention backend serves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.token_schedule import TokenSchedule, constant


@register("fastv")
class FastV(DecoderPruner):
    """Keep the most attended share of the visual tokens from one layer on.

    Args:
        shape: of the language model.
        layer: K, the first layer that runs on fewer tokens (paper: 2); ranked by the layer before.
        keep: share of each sequence's visual tokens that stays (paper: 0.5); without meaning where there is a budget.
        budget: visual tokens per image averaged over all decoder layers, the K full ones included, see `ops.token_schedule`;
            None uses `keep`.
    """

    def __init__(self, shape: DecoderShape, layer: int = 2, keep: float = 0.5, budget: float | None = None) -> None:
        if layer < 1:
            raise ReductionError(f"{self.name}: layer {layer} has no layer before it to rank by; take 1 or more")
        if not 0 <= keep <= 1:
            raise ReductionError(f"{self.name}: keep {keep!r} is not in [0, 1]")
        super().__init__(shape, (layer,))
        self.keep, self.budget = keep, budget
        patches = None if shape.reduced else shape.patches
        self.schedule = TokenSchedule(self.name, shape.layers, self.layers, constant, keep, budget, patches=patches)

    @torch.no_grad()
    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | None:
        """-> [B, L] bool."""
        layout = tokens.layout
        counts = self.schedule.counts(layer, layout, always=self.training)
        if counts is None:
            return None
        row = tokens.attention(layer - 1, layout.prompt_end()[:, None])  # [B, H, 1, L]
        return self.schedule.best(layout, row.mean(dim=1)[:, 0], counts)

    def extra_repr(self) -> str:
        return f"layer={self.layers[0]}, keep={self.keep}, budget={self.budget}"
