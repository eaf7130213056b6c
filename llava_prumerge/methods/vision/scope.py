"""SCOPE: greedy coverage of all patches by the kept ones, each gain weighted by the class attention.

SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs, Deng et al., NeurIPS 2025 (arXiv
2510.24214). The rule is the authors' code (kinredon/SCOPE 6bf7306): a patch covers another as well as the cosine of
their features says, its gain is what it adds to the best cover of every patch, times the class attention (sum over
heads, to the power `alpha`) of the block that made the features. Kept patches leave in raster order. Departures:
scores are float32, where the release computes in the model's type; a budget is each tile's, where the release divides
it by the number of tiles in a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.greedy import cosines, coverage_first, marked
from llava_prumerge.ops.select import pick


@dataclass(frozen=True, kw_only=True)
class ScopeSettings(BlockSettings):
    """By default 64 of 576 tokens."""

    alpha: float = setting(1.0, "power of the class attention", at_least(0), source="released code")
    combine: Literal["multiply", "add"] = setting(
        "multiply",
        "how class attention enters a gain: multiply is the release's COMBINED=multi, add its COMBINED=add",
        source="released code",
    )


@register("scope")
class Scope(BlockReducer):
    """Keep the patches that cover the image best, the attended ones first, in raster order."""

    paper = "SCOPE, Deng et al., NeurIPS 2025 (arXiv 2510.24214)"
    call_limit = CallLimit(step=9, why="a greedy rule: one step for each kept token")
    greedy = True
    settings: ScopeSettings

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        saliency = self.attention(image) * image.heads  # the release sums over heads
        size = self.width(image, self.counts(image))
        weights = saliency.pow(self.settings.alpha)
        covers = cosines(image.features.detach())
        order = coverage_first(covers, size, weights, add=self.settings.combine == "add")
        return pick(image.features, marked(order, image.features.shape[1]), size)
