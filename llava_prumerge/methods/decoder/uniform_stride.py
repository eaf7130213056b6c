"""Uniform stride: before chosen layers every s-th visual token stays; no score is computed.

The rule of ADSC (arXiv 2602.12618) as far as it is known, and the control of every schedule that ranks: it costs what they
cost and looks at nothing. Of ADSC the abstract and notes could be read, no code exists: which layers and which stride are
not known, so that they are fields, by default PyramidDrop's stages and its half. ADSC trains the language model with the
tokens gone (LoRA, the ratios in a reverse curriculum); training with this method in place is the project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from llava_prumerge.methods.base import DecoderShape, DecoderTokens
from llava_prumerge.methods.pruners import BudgetSettings, ScheduledPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.token_schedule import at_depths, geometric

STAGES = (8, 16, 24)
"""PyramidDrop's, of 32 layers."""


@dataclass(frozen=True, kw_only=True)
class UniformStrideSettings(BudgetSettings):
    """With a budget what a stage leaves is solved for, and spaced as evenly as whole tokens allow."""

    layers: tuple[int, ...] | None = setting(
        None,
        "tokens are dropped before these; null: 8, 16, 24, or the same fractions of fewer than 32 layers",
        source="ours, PyramidDrop's; unknown of ADSC",
    )
    stride: int = setting(
        2,
        "s: of what is there every s-th visual token stays, from the first; without meaning where there is a budget",
        at_least(1),
        source="ours; unknown of ADSC",
    )


@register("uniform_stride")
class UniformStride(ScheduledPruner):
    """Keep every s-th of the visual tokens that are left, before several layers."""

    paper = "ADSC, 2026 (arXiv 2602.12618), its rule without its training; our reading"
    settings: UniformStrideSettings

    def __init__(self, settings: UniformStrideSettings, shape: DecoderShape) -> None:
        stages = sorted(set(at_depths(STAGES, shape.layers) if settings.layers is None else settings.layers))
        curve = partial(geometric, drops=len(stages))
        super().__init__(settings, shape, stages, curve, 1 / settings.stride)

    @property
    def later_turns(self) -> str:
        """The steps run through the tokens of all images."""
        return "text"

    def scores(self, layer: int, tokens: DecoderTokens, counts: Tensor) -> Tensor:
        """1 for what stays, 0 for what goes. -> [B, L]"""
        is_image = tokens.layout.is_image
        place = is_image.cumsum(dim=1) - 1  # [B, L], among the visual tokens
        if self.settings.budget is None:
            return place % self.settings.stride == 0
        present = is_image.sum(dim=1, keepdim=True).clamp(min=1)
        return place * counts[:, None] % present < counts[:, None]
