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

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import ShareReducer, ShareSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
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
    settings: DivPruneSettings
    paper = "DivPrune, Alvar et al., CVPR 2025 (arXiv 2503.02175)"
    call_limit = CallLimit(step=5, why="a greedy rule: one step for each kept token")

    def rounding(self, share: Fraction) -> int:
        """int(round()), as in the released code."""
        return nearest(share)

    def repeats(self, patches: int, kept: int) -> int:
        """One step per kept token."""
        return kept

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D] unchanged."""
        size = self.width(image, self.counts(image))
        return pick(image.features, farthest_first(image.features.detach(), size), size)


def farthest_first(points: Tensor, size: int) -> Tensor:
    """Greedy max-min selection by cosine distance; ties go to the lower index. [N, P, D] -> [N, P] bool, `size` each"""
    unit = F.normalize(points.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)  # [N, P, P]
    others = torch.eye(points.shape[1], device=points.device) * 4  # more than any distance
    lone = (distance + others).amin(dim=2)  # [N, P] to the nearest other; alone in the image: 4
    keep = torch.zeros_like(lone, dtype=torch.bool)
    nearest = torch.full_like(lone, 4.0)  # to the nearest kept
    for step in range(size):
        candidates = (nearest if step else lone).masked_fill(keep, -1.0)
        chosen = candidates.argmax(dim=1, keepdim=True)  # [N, 1]
        keep = keep.scatter(1, chosen, True)
        row = distance.gather(1, chosen[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        nearest = torch.minimum(nearest, row)
    return keep
