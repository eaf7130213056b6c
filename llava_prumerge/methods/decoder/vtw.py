"""VTW: from layer K on there are no image tokens at all; what the text has read by then must do.

Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference, Lin et al., AAAI 2025
(arXiv 2405.05803; code lzhxmu/VTW a3d8cfc). The authors' search for K, by the divergence of output distributions on a
few samples, is `python -m llava_prumerge.search.vtw`; it found K = 15 of 32 layers for LLaVA-1.5-7B, which is our
default at the same fraction of the depth.
"""

from __future__ import annotations

from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.token_schedule import at_depth

FOUND = 15 / 32
"""The authors' K for LLaVA-1.5-7B, as a fraction of the depth."""


@register("vtw")
class VisualTokensWithdrawal(DecoderPruner):
    """Drop every visual token before one layer.

    Args:
        shape: of the language model.
        layer: K, the first layer without visual tokens; None takes the authors' 15 of 32, at the same fraction of the
            depth.
        budget: in place of `layer`, visual tokens per image averaged over all decoder layers. K is a whole number of
            layers, so that the budget is met to within P / 2L tokens; not together with a vision reducer, whose counts
            may differ from image to image.
    """

    later_turns = "images"

    def __init__(self, shape: DecoderShape, layer: int | None = None, budget: float | None = None) -> None:
        if layer is not None and budget is not None:
            raise ReductionError(f"{self.name}: give layer={layer} or budget={budget}, not both")
        if budget is not None:
            layer = self._layer_of(budget, shape)
        elif layer is None:
            layer = at_depth(FOUND, shape.layers)
        if not isinstance(layer, int) or not 1 <= layer <= shape.layers:
            raise ReductionError(f"{self.name}: layer {layer!r} is not one of 1 to {shape.layers}")
        super().__init__(shape, (min(layer, shape.layers - 1),))
        self.layer, self.budget = layer, budget

    def _layer_of(self, budget: float, shape: DecoderShape) -> int:
        """The K that costs nearest to a budget; all layers where it allows for that."""
        if shape.reduced:
            raise ReductionError(
                f"{self.name}: budget {budget!r} cannot be met behind a vision reducer; give layer instead"
            )
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
            raise ReductionError(f"{self.name}: budget {budget!r} is not a number of tokens above 0")
        layer = round(budget * shape.layers / shape.patches)
        if layer < 1:
            raise ReductionError(
                f"{self.name}: budget {budget:g} is less than half of one layer with all {shape.patches} tokens, "
                f"which costs {shape.patches / shape.layers:g} averaged over {shape.layers} layers"
            )
        return min(layer, shape.layers)

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | None:
        """-> [B, L] bool."""
        return None if self.layer > layer else ~tokens.layout.is_image

    def extra_repr(self) -> str:
        return f"layer={self.layer}, budget={self.budget}"
