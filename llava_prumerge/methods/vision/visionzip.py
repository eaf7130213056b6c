"""VisionZip: the patches with the highest class attention stay, and the others are merged into a few contextual tokens.

VisionZip: Longer is Better but Not Necessary in Vision Language Models, Yang et al., CVPR 2025 (arXiv 2412.04467). The
rule is the authors' code (dvlab-research/VisionZip): attention and keys of the block whose output becomes the features
(`attentions[-2]`, keys averaged over heads); contextual targets at an even stride of what is left; each other token
goes to its most similar target, and the mean of a group is added to its target. The class token is one of the dominant
tokens and comes first ("54" are the class token and 53 patches); `class_token: false` keeps a patch in its stead, as
is done for towers that have none. Departure: `merge: mean` and `none` are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.select import (
    behind_token,
    group_weights,
    mix,
    nearest_centres,
    pack,
    pick,
    raster_priority,
    select,
    top_mask,
)


@dataclass(frozen=True, kw_only=True)
class VisionZipSettings(BlockSettings):
    """By default 54 dominant and 10 contextual of 576 tokens."""

    share: Fraction = setting(
        "27/32",
        "part of what is kept that is dominant, rounded: 54 of 64, 108 of 128, 162 of 192",
        fraction(),
        source="released code",
    )
    class_token: bool = setting(
        True, "the class token is one of the dominant tokens, where the tower has one", source="released code"
    )
    merge: Literal["add", "mean", "none"] = setting(
        "add",
        "add puts the mean of a group on top of its target, mean averages target and group, none keeps the bare targets",
        source="released code",
    )


@register("visionzip")
class VisionZip(BlockReducer):
    """Dominant tokens in raster order, then contextual tokens in raster order of their targets."""

    paper = "VisionZip, Yang et al., CVPR 2025 (arXiv 2412.04467)"
    call_limit = CallLimit(
        58, why="class token, dominant and contextual tokens are made one after the other and joined"
    )
    settings: VisionZipSettings

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C], the class token first with origin -1; a contextual token's origin is its target."""
        patches = image.features.shape[1]
        scores = self.attention(image)
        size = self.width(image, self.counts(image))
        contextual = 0 if size == patches else size - round(self.settings.share * size)
        takes = self.settings.class_token and size - contextual > 1 and size < patches
        token = image.class_token if takes else None
        number = size - contextual - (token is not None)
        dominant = top_mask(scores, number)  # [N, P]
        kept = pick(image.features, dominant, number)
        if token is not None:
            kept = behind_token(token, kept)
        if not contextual:
            return kept
        rest, _ = pack(~dominant, raster_priority(dominant), patches - number)  # [N, M] in raster order
        targets = rest[:, :: rest.shape[1] // contextual][:, :contextual]
        if self.settings.merge == "none":
            merged = select(image.features, targets)
        else:
            members = ~dominant.scatter(1, targets, True)
            gathered = nearest_centres(image.block(self.own).head_keys, targets, members)  # [N, contextual, P]
            merged = mix(group_weights(gathered, targets, add=self.settings.merge == "add"), image.features)
        features, valid, origin = kept
        valid = torch.cat([valid, torch.ones_like(targets, dtype=torch.bool)], dim=1)
        return torch.cat([features, merged], dim=1), valid, torch.cat([origin, targets], dim=1)
