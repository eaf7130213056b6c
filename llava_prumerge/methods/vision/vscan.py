"""VScan, its encoder side: patches attended globally, and locally in an early block, stay and take in the rest.

VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models, Zhang et al., TMLR 2026 (arXiv
2505.22654). The rule is the authors' code (Tencent/SelfEvolvingAgent a82450e), just after the projector: half of the
tokens are the patches of highest class attention of an early block (5 of 24, the sixth) in each of 16 windows, the
other half those of the block that made the features; every other patch goes to the kept one of highest cosine, and a
kept token is the mean of its group. Departures: `count: exact` gives what the windows cannot share out evenly to the
global half, the release keeps fewer (`released`: 98 of 100); grids that 6 does not divide are cut into windows as
equal as can be. The second step between the decoder's layers is a method of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Earlier, Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit, TokensLeft
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings, ShareReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.groups import cell_labels, ranks_within
from llava_prumerge.ops.select import group_weights, mix, nearest_centres, pick, top_mask


@dataclass(frozen=True, kw_only=True)
class VScanSettings(BlockSettings):
    """By default 96 of 576 tokens, which the release's scripts give to the decoder."""

    keep_ratio: Fraction = setting(
        "1/6", "share of the patches that stays, rounded up", fraction(), source="released code"
    )
    local: Fraction = setting(
        "1/2", "part of what is kept that windows choose", fraction(zero=True), source="released code"
    )
    window: int = setting(6, "patches along each side of a window", at_least(1), source="released code")
    shallow: Fraction = setting(
        "5/22",
        "block whose attention windows choose by, as a part of the way from the tower's first block to the one that "
        "made the features; 5/22 is block 5 of LLaVA's tower",
        fraction(zero=True),
        source="released code",
    )
    merge: Literal["mean", "none"] = setting(
        "mean", "mean averages each dropped patch into its most similar kept one, none drops it", source="released code"
    )
    count: Literal["exact", "released"] = setting(
        "exact", "exact keeps the number asked for, released what even windows and the other half give", source="ours"
    )


@register("vscan")
class VScan(BlockReducer):
    """Keep local and global patches in raster order, each the mean of what is most like it."""

    site = "projected"
    paper = "VScan, Zhang et al., TMLR 2026 (arXiv 2505.22654)"
    call_limit = CallLimit(85, why="two blocks are asked, patches rank within windows, and the rest is merged")
    settings: VScanSettings

    @property
    def earlier(self) -> tuple[Earlier, ...]:
        """The block that windows choose by."""
        return (Earlier(self.settings.shallow),)

    def tokens_left(self, patches: int) -> TokensLeft:
        """The budget or the share; at most, where the release's count is taken."""
        left = super().tokens_left(patches)
        return left if self.settings.count == "exact" else TokensLeft(left.tokens, f"{left.source}, at most", False)

    def chosen(self, image: VisionTokens, size: int) -> Tensor:
        """Which patches stay. [N, P] bool"""
        late, early = self.attention(image), image.attention(per_head=True, own=self.earlier[0])
        rows, columns = (max(1, round(side / self.settings.window)) for side in image.grid)
        windows = cell_labels(image.grid, rows, columns, late.device).expand(late.shape)
        half = int(size * self.settings.local)
        local = ranks_within(early, windows, rows * columns) < half // (rows * columns)
        rest = size - half if self.settings.count == "released" else size - local.sum(dim=1)
        return local | top_mask(late.masked_fill(local, -torch.inf), rest)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D]."""
        patches = image.features.shape[1]
        image.attention(per_head=True, own=self.earlier[0])  # before width, which checks what was asked for
        self.attention(image)
        counts = self.counts(image)
        if self.settings.count == "exact":
            size = self.width(image, counts)
            keep = self.chosen(image, size)
        else:
            keep = self.chosen(image, ShareReducer.tokens_left(self, patches).tokens)
            size = self.width(image, keep.sum(dim=1))
        features, valid, origin = pick(image.features, keep, size)
        if self.settings.merge == "mean" and size < patches:
            with torch.no_grad():
                index = origin.clamp(min=0)
                mixing = group_weights(nearest_centres(image.features, index, ~keep, valid), index)
            features = mix(mixing, image.features)
        return features, valid, origin
