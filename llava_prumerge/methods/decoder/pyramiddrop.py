"""PyramidDrop: stage by stage half of the image tokens go, those the last instruction token attends to least.

PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction, Xing et al., CVPR
    2025 as "Conical
Visual Concentration" (arXiv 2410.17247). As in the authors' code the ranking layer's own query and key projections
score its input, averaged over heads, and the layer itself then runs on what is left. Departures: shares are rounded up
where the code rounds down (equal for 576 tokens), and depths other than 32 layers take the stages at the same
fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.token_schedule import TokenSchedule, at_depth, geometric

STAGES = (8 / 32, 16 / 32, 24 / 32)
"""The paper's layers 8, 16 and 24 of 32."""


@register("pyramiddrop")
class PyramidDrop(DecoderPruner):
    """Keep the most attended share of what is left, before several layers.

    Args:
        shape: of the language model.
        layers: the first layers of all stages but the first; None takes the paper's 8, 16, 24 at the same fractions of
            the depth.
        keep: lambda, the share of its visual tokens that a stage leaves to the next (paper: 0.5).
        budget: visual tokens per image averaged over all decoder layers, see `ops.token_schedule`: lambda is then solved
            for; None uses `keep`.
    """

    def __init__(
        self,
        shape: DecoderShape,
        layers: Sequence[int] | None = None,
        keep: float = 0.5,
        budget: float | None = None,
    ) -> None:
        if not 0 < keep <= 1:
            raise ReductionError(f"{self.name}: keep {keep!r} is not in (0, 1]")
        if layers is None:
            layers = [at_depth(stage, shape.layers) for stage in STAGES]
        super().__init__(shape, tuple(set(layers)))
        self.keep, self.budget = keep, budget
        patches = None if shape.reduced else shape.patches
        curve = partial(geometric, drops=len(self.layers))
        self.schedule = TokenSchedule(self.name, shape.layers, self.layers, curve, keep, budget, patches=patches)

    @torch.no_grad()
    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | None:
        """-> [B, L] bool."""
        layout = tokens.layout
        counts = self.schedule.counts(layer, layout, always=self.training)
        if counts is None:
            return None
        row = tokens.attention(layer, layout.prompt_end()[:, None])  # [B, H, 1, L]
        return self.schedule.best(layout, row.mean(dim=1)[:, 0], counts)

    def extra_repr(self) -> str:
        return f"layers={list(self.layers)}, keep={self.keep}, budget={self.budget}"
