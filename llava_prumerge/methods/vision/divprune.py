"""DivPrune: greedily keeps the tokens that are least like those kept so far.

DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, Alvar et al., CVPR 2025 (arXiv 2503.02175),
Eq. 3. As in the authors' code (vbdi/divprune) it acts on projected tokens with cosine distance: first the token
farthest from its nearest other, then always the one whose nearest kept token is farthest, in the end in raster order.
The share is rounded to the nearest as in their code, whose 0.098 of 576 is 56 tokens. Departure: a kept token cannot be
chosen again, which the code allows where all distances are zero. The greedy rule is sequential: one step for each kept
token, for all images at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import ShareReducer, ShareSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.greedy import farthest_first, marked
from llava_prumerge.ops.select import pick
from llava_prumerge.ops.token_schedule import nearest


@dataclass(frozen=True, kw_only=True)
class DivPruneSettings(ShareSettings):
    """By default 56 of 576 tokens."""

    keep_ratio: Fraction = setting(
        "0.098",
        "share of the patches that stays, rounded to the nearest",
        fraction(),
        source="released code",
        formerly="keep",
    )


@register("divprune")
class DivPrune(ShareReducer):
    """Keep a diverse subset, in raster order."""

    site = "projected"
    greedy = True
    settings: DivPruneSettings
    paper = "DivPrune, Alvar et al., CVPR 2025 (arXiv 2503.02175)"
    call_limit = CallLimit(step=5, why="a greedy rule: one step for each kept token")

    def rounding(self, share: Fraction) -> int:
        """int(round()), as in the released code."""
        return nearest(share)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D] unchanged."""
        size = self.width(image, self.counts(image))
        order = farthest_first(image.features.detach(), size)
        return pick(image.features, marked(order, image.features.shape[1]), size)
