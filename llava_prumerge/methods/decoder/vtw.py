"""VTW: from layer K on there are no image tokens at all; what the text has read by then must do.

Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference, Lin et al., AAAI 2025
(arXiv 2405.05803; code lzhxmu/VTW a3d8cfc). The authors' search for K, by the divergence of output distributions on a
few samples, is `python -m llava_prumerge.search vtw`; it found K = 15 of 32 layers for LLaVA-1.5-7B, which is our
default at the same fraction of the depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.cost import Course
from llava_prumerge.methods.pruners import BudgetSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.search_target import SearchKind, SearchTarget
from llava_prumerge.methods.settings import setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.token_schedule import at_depth

EARLIEST = 5 / 32
"""The authors' search begins at layer 5 of 32."""
FOUND = 15 / 32
"""The authors' K for LLaVA-1.5-7B, as a fraction of the depth."""


@dataclass(frozen=True, kw_only=True)
class WithdrawalSettings(BudgetSettings):
    """K is a whole number of layers, so that a budget is met to within P / 2L tokens; not behind a vision reducer."""

    layer: int | None = setting(
        None,
        "K, the first layer without visual tokens, in place of a budget; null: 15 of 32 at the same fraction of the depth",
        source="released code, LLaVA-1.5-7B",
    )

    def check(self) -> None:
        if self.layer is not None and self.budget is not None:
            raise ReductionError(f"give layer={self.layer} or budget={self.budget:g}, not both")


@register("vtw")
class VisualTokensWithdrawal(DecoderPruner):
    """Drop every visual token before one layer."""

    paper = "VTW, Lin et al., AAAI 2025 (arXiv 2405.05803)"
    search_targets = (
        SearchTarget(
            SearchKind.LAYER,
            lambda layer: {"layer": layer},
            "VTW (Lin et al., AAAI 2025, arXiv 2405.05803)",
            earliest=EARLIEST,
            threshold=0.003,
        ),
    )
    settings: WithdrawalSettings

    def __init__(self, settings: WithdrawalSettings, shape: DecoderShape) -> None:
        layer = settings.layer
        if settings.budget is not None:
            layer = self._layer_of(settings.budget, shape)
        elif layer is None:
            layer = at_depth(FOUND, shape.layers)
        if not 1 <= layer <= shape.layers:
            raise ReductionError(f"{self.name}: layer {layer!r} is not one of 1 to {shape.layers}")
        super().__init__(settings, shape, (min(layer, shape.layers - 1),))
        self.layer = layer

    @property
    def later_turns(self) -> str:
        """Nothing decides but the layer."""
        return "images"

    def course(self, present: int) -> Course:
        """All tokens, then none."""
        return Course((present,) * self.layer + (0,) * (self.depth - self.layer), "its settings")

    def _layer_of(self, budget: float, shape: DecoderShape) -> int:
        """The K that costs nearest to a budget; all layers where it allows for that."""
        if shape.reduced:
            raise ReductionError(
                f"{self.name}: budget {budget:g} cannot be met behind a vision reducer; give layer instead"
            )
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
