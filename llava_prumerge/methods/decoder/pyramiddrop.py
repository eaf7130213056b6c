"""PyramidDrop: stage by stage half of the image tokens go, those the last instruction token attends to least.

PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction, Xing et al., CVPR
2025 as "Conical Visual Concentration" (arXiv 2410.17247). As in the authors' code the ranking layer's own query and key projections
score its input, averaged over heads, and the layer itself then runs on what is left. Departures: shares are rounded up
where the code rounds down (equal for 576 tokens), and depths other than 32 layers take the stages at the same
fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.pruners import BudgetSettings, PromptRankedPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.token_schedule import at_depth, geometric

STAGES = (8 / 32, 16 / 32, 24 / 32)
"""The paper's layers 8, 16 and 24 of 32."""


@dataclass(frozen=True, kw_only=True)
class PyramidDropSettings(BudgetSettings):
    """With a budget lambda is solved for."""

    layers: tuple[int, ...] | None = setting(
        None,
        "the first layers of all stages but the first; null: 8, 16, 24 of 32 at the same fractions of the depth",
        source="paper",
    )
    keep_ratio: float = setting(
        0.5,
        "lambda, the share of its visual tokens that a stage leaves to the next, rounded up",
        fraction(),
        source="paper",
        formerly="keep",
    )


@register("pyramiddrop")
class PyramidDrop(PromptRankedPruner):
    """Keep the most attended share of what is left, before several layers."""

    paper = "PyramidDrop, Xing et al., CVPR 2025 (arXiv 2410.17247)"
    ranks_ahead = True
    settings: PyramidDropSettings

    def __init__(self, settings: PyramidDropSettings, shape: DecoderShape) -> None:
        layers = settings.layers
        stages = [at_depth(stage, shape.layers) for stage in STAGES] if layers is None else sorted(set(layers))
        curve = partial(geometric, drops=len(stages))
        super().__init__(settings, shape, stages, curve, settings.keep_ratio)
