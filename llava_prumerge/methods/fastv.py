"""FastV: after layer K, image tokens that receive little attention from the last token are dropped.

An Image is Worth 1/2 Tokens After Layer 2, Chen et al., ECCV 2024 (arXiv 2403.06764). The text ranks by attention received from all
later tokens, the authors' code by the last token's row, averaged over heads; ours is the code's rule. The row is computed from the
previous layer's own projections, so any attention backend serves.
"""

from __future__ import annotations

from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.select import top_mask


@register("fastv")
class FastV(DecoderPruner):
    """Keep the most attended share of the visual tokens from one layer on.

    Args:
        shape: of the language model.
        layer: K, the first layer that runs on fewer tokens (paper: 2); ranked by the layer before.
        keep: share of each sequence's visual tokens that stays (paper: 0.5).
        budget: visual tokens per sequence that stay instead, exactly; None uses `keep`.
    """

    def __init__(self, shape: DecoderShape, layer: int = 2, keep: float = 0.5, budget: int | None = None) -> None:
        if layer < 1:
            raise ReductionError(f"{self.name}: layer {layer} has no layer before it to rank by; take 1 or more")
        if not 0 <= keep <= 1:
            raise ReductionError(f"{self.name}: keep {keep!r} is not in [0, 1]")
        if budget is not None and budget < 0:
            raise ReductionError(f"{self.name}: budget {budget!r} is not a whole number of at least 0")
        super().__init__(shape, (layer,))
        self.keep, self.budget, self.patches = keep, budget, shape.patches

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor:
        """-> [B, L] bool."""
        layout = tokens.layout
        row = tokens.attention(layer - 1, layout.last_index()[:, None])  # [B, H, 1, L]
        scores = row.mean(dim=1)[:, 0].masked_fill(~layout.is_image, -1.0)  # [B, L]
        present = layout.is_image.sum(dim=1)
        counts = (present * self.keep).ceil().long() if self.budget is None else present.clamp(max=self.budget)
        return ~layout.is_image | (top_mask(scores, counts) & layout.is_image)

    def extra_repr(self) -> str:
        return f"layer={self.layers[0]}, keep={self.keep}, budget={self.budget}"
