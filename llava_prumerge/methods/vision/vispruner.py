"""VisPruner: half of what stays is attended most, the other half is left by rounds of removing duplicates.

Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs, Zhang et al., ICCV 2025
(arXiv 2412.01818 v2; v1 is `fastervlm`). The rule is the authors' code (Theia-4869/VisPruner aefa01a): `important` of
the budget by class attention of the block that made the features; what is left stands in falling attention and is put
alternately into two lists, the tokens of the first that are most like one of the second leave, eight a round, and the
next round goes over the first list in the order of similarity, then the second. Kept patches leave in raster order.
Departures: lists of odd length and rounds that would remove more than the first list holds work, where the release
raises; similarities are float32 (in half precision the order inside a round changes, and with it all later rounds).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.greedy import cosines, marked
from llava_prumerge.ops.select import pick, select


@dataclass(frozen=True, kw_only=True)
class VisPrunerSettings(BlockSettings):
    """By default 64 of 576 tokens, 32 of them important."""

    important_ratio: Fraction = setting(
        "1/2",
        "part of what is kept that class attention chooses, rounded down; the release's scripts use 1/2 and 3/4",
        fraction(zero=True),
        source="released code",
    )
    removed: int = setting(8, "tokens that each round removes at most", at_least(1), source="released code")


@register("vispruner")
class VisPruner(BlockReducer):
    """Keep important and diverse patches, in raster order."""

    paper = "VisPruner, Zhang et al., ICCV 2025 (arXiv 2412.01818 v2)"
    call_limit = CallLimit(step=9, why="rounds of removing duplicates, each on what the one before left")
    settings: VisPrunerSettings

    def important(self, kept: int) -> int:
        """How many of what is kept are chosen by attention; a float product, as released."""
        return int(kept * float(self.settings.important_ratio))

    def repeats(self, patches: int, kept: int) -> int:
        """The rounds it takes."""
        important = self.important(kept)
        return len(removals(patches - important, kept - important, self.settings.removed))

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        scores, patches = self.attention(image), image.features.shape[1]
        size = self.width(image, self.counts(image))
        important = self.important(size)
        order = scores.argsort(dim=1, descending=True, stable=True)
        rounds = removals(patches - important, size - important, self.settings.removed)
        with torch.no_grad():
            diverse = without_duplicates(image.features, order[:, important:], rounds)[:, : size - important]
        return pick(image.features, marked(torch.cat([order[:, :important], diverse], dim=1), patches), size)


def removals(length: int, target: int, most: int) -> list[int]:
    """How many tokens each round removes of the first half of what is left; none where none are wanted."""
    rounds: list[int] = []
    while 0 < target < length:
        rounds.append(min(most, length - target, -(-length // 2)))
        length -= rounds[-1]
    return rounds


def without_duplicates(features: Tensor, order: Tensor, rounds: list[int]) -> Tensor:
    """Rounds that remove tokens of the even places which are most like one of the odd places.

    Args:
        features: [N, P, C].
        order: [N, M] raster indices, the list at the beginning.
        rounds: how many each round removes.

    Returns:
        [N, M - sum(rounds)] raster indices.
    """
    similarity = cosines(features)
    for count in rounds:
        even, odd = order[:, ::2], order[:, 1::2]
        of_odd = odd[:, None].expand(-1, even.shape[1], -1)
        alike = select(similarity, even).gather(2, of_odd).amax(dim=2)
        by_likeness = alike.argsort(dim=1, descending=True, stable=True)
        order = torch.cat([even.gather(1, by_likeness[:, count:]), odd], dim=1)
    return order
