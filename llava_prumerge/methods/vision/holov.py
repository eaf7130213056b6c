"""HoloV: each crop of the image has a quota by its class attention and fills it with its most attended patches.

HoloV, Zou et al., NeurIPS 2025 (arXiv 2510.02912). The rule is the authors' code (obananas/HoloV 1d2e65e), just after
the projector. Three things in it are not what they seem, and are kept as they are:

- its 16 crops are consecutive chunks of the raster, 1.5 rows of 24 each. `crops: cells` cuts the image into rows and
  columns instead;
- the term for diversity is scaled by its own mean before it is averaged over the crop, so that a crop's score is 1.09
  times its mean attention, and the quotas are those of attention alone;
- inside a crop attention alone chooses.

Departure: a crop that is full leaves the rest of its quota to the most attended patches elsewhere, so that budgets
are met; the release puts rows of zeros there, `count: released` leaves them out. The re-fetch of the paper was not
released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit, TokensLeft
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.groups import cell_labels, chunk_labels, group_sums, ranks_within, shared_out
from llava_prumerge.ops.select import pack, select, top_mask

SCALE = 1000.0
SMALL = 1e-6


@dataclass(frozen=True, kw_only=True)
class HoloVSettings(BlockSettings):
    """By default 64 of 576 tokens."""

    number: int = setting(16, "crops of an image", at_least(1), source="released code")
    crops: Literal["raster", "cells"] = setting(
        "raster",
        "raster cuts the raster into consecutive chunks, cells the image into rows and columns, as square as can be",
        source="released code",
    )
    diversity: float = setting(
        0.09, "weight of the diversity inside a crop, which cancels out", at_least(0), source="released code"
    )
    count: Literal["exact", "released"] = setting(
        "exact",
        "exact gives what a full crop cannot take to the most attended patches elsewhere, released leaves it out",
        source="ours",
    )


@register("holov")
class HoloV(BlockReducer):
    """Keep the most attended patches of every crop: crop by crop, by falling attention unless a crop stays whole."""

    site = "projected"
    paper = "HoloV, Zou et al., NeurIPS 2025 (arXiv 2510.02912)"
    call_limit = CallLimit(110, why="crops are scored, get their quotas and are filled one after the other")
    settings: HoloVSettings

    def tokens_left(self, patches: int) -> TokensLeft:
        """The budget or the share; at most, where a full crop's rest is left out."""
        left = super().tokens_left(patches)
        return left if self.settings.count == "exact" else TokensLeft(left.tokens, f"{left.source}, at most", False)

    def crops(self, image: VisionTokens) -> tuple[Tensor, int]:
        """The crop of each patch [N, P], and how many there are."""
        (images, patches), device = image.features.shape[:2], image.features.device
        if self.settings.crops == "raster":
            number = min(self.settings.number, patches)
            return chunk_labels(patches, number, device).expand(images, -1), number
        rows = min(math.isqrt(self.settings.number), image.grid[0])
        columns = min(self.settings.number // rows, image.grid[1])
        return cell_labels(image.grid, rows, columns, device).expand(images, -1), rows * columns

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D]."""
        scores = self.attention(image)
        crops, number = self.crops(image)
        size = self.width(image, self.counts(image))
        sizes = group_sums(torch.ones_like(crops), crops, number)  # [N, G]
        with torch.no_grad():
            weights = crop_scores(image.features, scores, crops, sizes, self.settings.diversity)
        quotas = shared_out(weights / (weights.sum(dim=1, keepdim=True) + SMALL), size)
        ranks = ranks_within(scores, crops, number)
        keep = ranks < quotas.gather(1, crops)
        if self.settings.count == "exact":
            elsewhere = top_mask(scores.masked_fill(keep, -torch.inf), size - keep.sum(dim=1))
            keep = keep | elsewhere
        whole = group_sums(keep.long(), crops, number) == sizes  # crops of which all stays are in raster order
        place = torch.where(whole.gather(1, crops), torch.arange(keep.shape[1], device=keep.device), ranks)
        index, valid = pack(keep, -(crops * keep.shape[1] + place), size)
        return select(image.features, index), valid, index.masked_fill(~valid, -1)


def crop_scores(features: Tensor, attention: Tensor, crops: Tensor, sizes: Tensor, diversity: float) -> Tensor:
    """Mean over a crop of its scaled attention and diversity, as the release computes it.

    Args:
        features: [N, P, D].
        attention: [N, P].
        crops: [N, P] the crop of each patch.
        sizes: [N, G] patches of each crop.
        diversity: its weight.

    Returns:
        [N, G]; a crop of one patch has that patch's attention.
    """
    features = features.float()
    unit = features / (features.norm(dim=-1, keepdim=True) + SMALL)
    together = crops[:, None] == crops[..., None]  # [N, P, P]
    alone = torch.eye(crops.shape[1], dtype=torch.bool, device=crops.device)
    alike = (unit @ unit.transpose(1, 2)).masked_fill(alone | ~together, 0.0)
    others = (sizes - 1).clamp(min=1).gather(1, crops)[..., None]  # [N, P, 1]
    mean = alike.sum(dim=2, keepdim=True) / others
    spread = ((alike - mean).square() * together).sum(dim=2) / others[..., 0]  # the zeroed diagonal counts
    number = sizes.shape[1]
    level = SCALE * group_sums(attention, crops, number) / sizes
    spread = group_sums(spread, crops, number) / sizes
    return torch.where(sizes == 1, level / SCALE, level + diversity * spread * level / (spread + SMALL))
