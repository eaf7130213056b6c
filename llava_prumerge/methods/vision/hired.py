"""HiRED: the most attended patches stay; each tile of an image has a quota by the attention of an early block.

HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models, Arif et al.,
AAAI 2025 (arXiv 2408.10945). The rule is the authors' code (hasanar1f/HiRED 502d6dd). An image of one view keeps the
patches of highest class attention of the block that made the features. Of a view of the whole and n - 1 tiles the
view gets `alpha` of all tokens; its `1 - alpha` patches of highest class attention of the tower's first block are
marked, the marks are cut into n - 1 consecutive pieces, and a tile gets the share of the rest that its piece has of
the marks. Those pieces are bands of the view, not the parts of it that the tiles show; `pieces: parts` takes these.
Departures: every tile keeps one token at least; what rounding down would lose is given to the tiles with the largest
rests where a `budget` is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Earlier, Reduced, VisionTokens
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.groups import group_sums, ranks_within
from llava_prumerge.ops.select import pick, top_mask

FIRST = Earlier(Fraction(0))


@dataclass(frozen=True, kw_only=True)
class HiREDSettings(BlockSettings):
    """By default 115 of 576 tokens, and 20% of all of an image's tiles."""

    keep_ratio: Fraction = setting(
        "1/5", "share of the patches that stays, rounded down", fraction(), source="released code"
    )
    alpha: Fraction = setting(
        "1/2",
        "part of an image's tokens that the view of the whole gets, where there are tiles",
        fraction(),
        source="released code",
    )
    pieces: Literal["bands", "parts"] = setting(
        "bands",
        "what a tile's share is counted in: bands of the view as released, or the parts of it that the tiles show, where "
        "the family says which these are",
        source="released code; parts is ours",
    )


@register("hired")
class HiRED(BlockReducer):
    """Keep the most attended patches of each tile, in raster order."""

    paper = "HiRED, Arif et al., AAAI 2025 (arXiv 2408.10945)"
    settings: HiREDSettings

    @property
    def earlier(self) -> tuple[Earlier, ...]:
        """The tower's first block, for the quotas of tiles."""
        return (FIRST,)

    def rounding(self, share: Fraction) -> int:
        """Down, as in the released code."""
        return math.floor(share)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        scores = self.attention(image)
        counts = self.counts(image) if image.overview is None else self.quotas(image, image.overview)
        if image.overview is not None and torch.compiler.is_compiling():
            size = image.features.shape[1]
        else:
            size = self.width(image, counts)
        return pick(image.features, top_mask(scores, counts), size)

    def quotas(self, image: VisionTokens, overview: Tensor) -> Tensor:
        """Tokens of each tile. [N]"""
        tiles, patches = image.features.shape[:2]
        number = torch.arange(tiles, device=overview.device)
        groups = overview[None]
        of_image = group_sums(torch.ones_like(groups), groups, tiles)[0]  # [N], at the place of the view
        full, sub = (torch.tensor(part, device=overview.device)[of_image] for part in zip(*self.shares(tiles, patches)))
        parts = (of_image[overview] - 1).clamp(min=1)  # [N] tiles beside the view
        begin = torch.full_like(number, tiles).scatter_reduce(0, overview, number, "amin")[overview]
        place = number - begin - (overview < number).long()  # among these tiles
        marks = top_mask(image.attention(per_head=True, own=FIRST), int(patches * (1 - self.settings.alpha)))
        if self.settings.pieces == "parts" and image.boxes is not None:
            inside = shown(image.boxes, image.grid)
        else:
            bands = torch.arange(patches, device=overview.device) * parts[:, None] // patches  # [N, P]
            inside = bands == place[:, None]
        marked = (marks[overview] & inside).sum(dim=1)
        every = marks.sum(dim=1)[overview].clamp(min=1)
        quota, rest = marked * sub[overview] // every, marked * sub[overview] % every
        is_view = overview == number
        quota, rest = quota.masked_fill(is_view, 0), rest.masked_fill(is_view, -1)
        if self.budget is not None:
            missing = sub - group_sums(quota[None], groups, tiles)[0]
            quota = quota + ((ranks_within(rest[None], groups, tiles)[0] < missing[overview]) & ~is_view)
        return torch.where(is_view, full[overview], quota).clamp(1, patches)

    def shares(self, tiles: int, patches: int) -> list[tuple[int, int]]:
        """For images of 0, 1, 2, ... tiles the tokens of the view and of the other tiles, rounded as released."""
        found = []
        for number in range(tiles + 1):
            of_ratio = int(number * patches * self.settings.keep_ratio)
            total = of_ratio if self.budget is None else number * min(self.budget, patches)
            full = min(int(total * self.settings.alpha), patches) if number > 1 else min(total, patches)
            found.append((full, max(0, min(total - full, (number - 1) * patches))))
        return found


def shown(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches of the view of the whole lie in each tile's part of it, by their middles. [N, 4] -> [N, P] bool"""
    down, across = ((torch.arange(side, device=boxes.device) + 0.5) / side for side in grid)
    top, left, bottom, right = boxes[..., None].unbind(dim=1)  # [N, 1] each
    rows, columns = (top <= down) & (down < bottom), (left <= across) & (across < right)
    return (rows[..., None] & columns[:, None]).flatten(1)
