"""VisionZip: the patches with the highest class attention stay, and the others are merged into a few contextual tokens.

VisionZip: Longer is Better but Not Necessary in Vision Language Models, Yang et al., CVPR 2025 (arXiv 2412.04467). The
rule is the authors' code (dvlab-research/VisionZip): attention and keys of the block whose output becomes the features
(`attentions[-2]`, keys averaged over heads); contextual targets at an even stride of what is left; each other token
goes to its most similar target, and the mean of a group is added to its target. Departure: the code passes on the class
token as one of its dominant tokens ("54" are 53 patches and the class token); a reducer sees patches alone, so all
dominant tokens are patches here.
"""

from __future__ import annotations

from typing import Any

import torch

from llava_prumerge.methods.base import BLOCKS, Reduced, ShareReducer, VisionTokens, register
from llava_prumerge.ops.merge import group_weights, mix, nearest_centres, pick, select
from llava_prumerge.ops.select import pack, raster_priority, top_mask

MERGES = ("add", "mean", "none")


@register("visionzip")
class VisionZip(ShareReducer):
    """Dominant tokens in raster order, then contextual tokens in raster order of their targets.

    Args:
        keep: share of the patches (1/9: 64 of 576).
        share: part of what is kept that is dominant, rounded (27/32: 54 of 64, 108 of 128, 162 of 192).
        merge: "add" puts the mean of a group on top of its target (released), "mean" averages target and group, "none"
            keeps the bare targets.
        block: whose attention and keys: "own", the block that made the features (released), or "next", the one that
            would read them.
        Others: see `ShareReducer`.
    """

    def __init__(
        self,
        keep: float | str = "1/9",
        share: float | str = "27/32",
        merge: str = "add",
        block: str = "own",
        **settings: Any,
    ) -> None:
        super().__init__(keep=keep, **settings)
        self.check(merge in MERGES, "merge", merge, f"one of {', '.join(MERGES)}")
        self.check(block in BLOCKS, "block", block, f"one of {', '.join(BLOCKS)}")
        self.share, self.merge, self.block = self.as_share("share", share), merge, block

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]; a contextual token's origin is its target."""
        own, patches = self.block == "own", image.features.shape[1]
        scores = image.attention(per_head=True, own=own)
        size = self.width(image, self.counts(image))
        contextual = 0 if size == patches else size - round(self.share * size)
        dominant = top_mask(scores, size - contextual)  # [N, P]
        kept = pick(image.features, dominant, size - contextual)
        if not contextual:
            return kept
        rest, _ = pack(~dominant, raster_priority(dominant), patches - size + contextual)  # [N, M] in raster order
        targets = rest[:, :: rest.shape[1] // contextual][:, :contextual]
        if self.merge == "none":
            merged = select(image.features, targets)
        else:
            members = ~dominant.scatter(1, targets, True)
            gathered = nearest_centres(image.block(own).head_keys, targets, members)  # [N, contextual, P]
            merged = mix(group_weights(gathered, targets, add=self.merge == "add"), image.features)
        features, valid, origin = kept
        valid = torch.cat([valid, torch.ones_like(targets, dtype=torch.bool)], dim=1)
        return torch.cat([features, merged], dim=1), valid, torch.cat([origin, targets], dim=1)
