"""FastV: after layer K, image tokens that receive little attention from the last token are dropped.

An Image is Worth 1/2 Tokens After Layer 2, Chen et al., ECCV 2024 (arXiv 2403.06764). The text ranks by attention received from all
later tokens, the authors' code by the last token's row, averaged over heads; ours is the code's rule. In training,
which the authors do not do, the last instruction tokens of all turns rank. The row is computed from the previous layer's own
projections, so any attention backend serves. Shares are rounded to the nearest, halves up, as in the port that its authors made
for transformers; their first code takes a number of tokens, lmms-eval's rounds down.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.pruners import BudgetSettings, PromptRankedPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.token_schedule import constant, nearest_up


@dataclass(frozen=True, kw_only=True)
class FastVSettings(BudgetSettings):
    """One drop."""

    layer: int = setting(
        2,
        "K, the first layer that runs on fewer tokens, ranked by the layer before",
        at_least(1, "a layer of at least 1, which has one before it to rank by"),
        source="paper",
    )
    keep_ratio: float = setting(
        0.5,
        "share of each sequence's visual tokens that stays, to the nearest token; without meaning where there is a budget",
        fraction(zero=True),
        source="paper",
        formerly="keep",
    )


@register("fastv")
class FastV(PromptRankedPruner):
    """Keep the most attended share of the visual tokens from one layer on."""

    paper = "FastV, Chen et al., ECCV 2024 (arXiv 2403.06764)"
    settings: FastVSettings

    def __init__(self, settings: FastVSettings, shape: DecoderShape) -> None:
        super().__init__(settings, shape, (settings.layer,), constant, settings.keep_ratio)

    def rounding(self, share: float) -> int:
        """To the nearest, halves up."""
        return nearest_up(share)
