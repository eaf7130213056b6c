"""TrimTokenator: patches near the prompt's embeddings stay, and of these a choice that is least alike on average.

Towards Adaptive Visual Token Pruning for Large Multimodal Models (TrimTokenator, arXiv 2509.00320). The authors
released no code; the rule is that of a third party's re-implementation which follows the paper's notation
(DamonZhao-sfu/LLM-Multimodal 80b0ac0), just after the projector: the negated mean squared distance to all prompt
embeddings chooses a share of the patches first; then greedily the patch whose mean cosine to the chosen ones is
lowest, the first one by its mean cosine to all that are left. Kept patches leave in raster order. That the first
share is 0.8 is the third party's. Departure: a budget above the first share raises it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import ShareReducer, ShareSettings, TemplateSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.greedy import cosines, least_alike_first, marked
from llava_prumerge.ops.retrieval import queries_of
from llava_prumerge.ops.select import pick, top_mask


@dataclass(frozen=True, kw_only=True)
class TrimTokenatorSettings(ShareSettings, TemplateSettings):
    """By default 144 of 576 tokens."""

    keep_ratio: Fraction = setting(
        "1/4", "share of the patches that stays, rounded down", fraction(), source="re-implementation"
    )
    stage1_ratio: Fraction = setting(
        "0.8",
        "share of the patches that nearness to the prompt leaves, rounded down",
        fraction(),
        source="re-implementation; the paper's is not known",
    )


@register("trimtokenator")
class TrimTokenator(ShareReducer):
    """Keep patches near the prompt that are unlike each other, in raster order."""

    site, reads_prompt = "projected", True
    paper = "TrimTokenator (arXiv 2509.00320), a re-implementation"
    call_limit = CallLimit(60, step=6, why="it reads the prompt, and its greedy rule has one step for each kept token")
    greedy = True
    settings: TrimTokenatorSettings

    def rounding(self, share: Fraction) -> int:
        """Down, as in the code."""
        return math.floor(share)

    def nearness(self, image: VisionTokens) -> Tensor:
        """Negated mean squared distance of each patch to the prompt, but for what all patches share. [N, P]"""
        visual, text, mask = image.matched("llm")
        queries = queries_of(mask, self.settings.before, self.settings.after)
        weights = queries / queries.sum(dim=1, keepdim=True).clamp(min=1)  # [N, T]
        mean = weights[:, None] @ text.float().masked_fill(~queries[..., None], 0.0)  # [N, 1, D]
        visual = visual.float()
        near = 2 * (visual @ mean.transpose(1, 2))[..., 0] - visual.square().sum(dim=2)
        return near.masked_fill(~queries.any(dim=1, keepdim=True), 0.0)  # without a text all are as near

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D] unchanged."""
        patches = image.features.shape[1]
        with torch.no_grad():
            nearness = self.nearness(image)
            size = self.width(image, self.counts(image), nearness)
            near = top_mask(nearness, max(size, math.floor(self.settings.stage1_ratio * patches)))
            order = least_alike_first(cosines(image.features), near, size)
        return pick(image.features, marked(order, patches), size)
