"""PyramidDrop: stage by stage half of the image tokens go, those the last instruction token attends to least.

PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction, Xing et al., CVPR
2025 as "Conical Visual Concentration" (arXiv 2410.17247). As in the authors' code the ranking layer's own query and key projections
score its input, averaged over heads, the layer itself then runs on what is left, at consecutive positions, and shares
are rounded down; in training the last instruction tokens of all turns rank. The
released scripts name layers 8, 16 and 24 for 32 layers and for the 40 of 13B models alike; models of fewer than 32
layers take them at the same fractions of the depth (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.pruners import BudgetSettings, PromptRankedPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.token_schedule import at_depths, down, geometric

STAGES = (8, 16, 24)
"""The released layers of 32 and of 40."""


@dataclass(frozen=True, kw_only=True)
class PyramidDropSettings(BudgetSettings):
    """With a budget lambda is solved for."""

    layers: tuple[int, ...] | None = setting(
        None,
        "the first layers of all stages but the first; null: 8, 16, 24, or the same fractions of fewer than 32 layers",
        source="released code",
    )
    keep_ratio: float = setting(
        0.5,
        "lambda, the share of its visual tokens that a stage leaves to the next, rounded down",
        fraction(),
        source="paper",
        formerly="keep",
    )


@register("pyramiddrop")
class PyramidDrop(PromptRankedPruner):
    """Keep the most attended share of what is left, before several layers."""

    paper = "PyramidDrop, Xing et al., CVPR 2025 (arXiv 2410.17247)"
    positions = "renumbered"
    ranks_ahead = True
    settings: PyramidDropSettings

    def __init__(self, settings: PyramidDropSettings, shape: DecoderShape) -> None:
        stages = sorted(set(at_depths(STAGES, shape.layers) if settings.layers is None else settings.layers))
        curve = partial(geometric, drops=len(stages))
        super().__init__(settings, shape, stages, curve, settings.keep_ratio)

    def rounding(self, share: float) -> int:
        """Down."""
        return down(share)
