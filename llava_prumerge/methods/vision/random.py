"""Random: the baseline that keeps patches drawn by lot.

No paper of its own; the row every table of token reduction needs. The lot is a hash of (image, patch, seed), not a generator's
state: an image keeps the same patches in any batch, on any device, in training and in evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import OutlierReducer, OutlierSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import Rule, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.select import pack, raster_priority, select, top_mask

_GOLDEN_RATIO = -0x61C8864680B583EB  # splitmix64's constants as signed numbers
_FIRST_FACTOR = -0x40A7B892E31B1A47
_SECOND_FACTOR = -0x6B2FB644ECCEEE15


@dataclass(frozen=True, kw_only=True)
class RandomSettings(OutlierSettings):
    """Without a budget an image keeps as many as it has outliers."""

    seed: int = setting(
        0, "of the lot", Rule("a whole number of 64 bits", lambda value: -(2**63) <= value < 2**63), source="ours"
    )


@register("random")
class RandomSample(OutlierReducer):
    """Keep patches drawn by lot, in raster order."""

    needs_ids = True
    call_limit = CallLimit(58, why="two hashes in whole numbers, of the image and of its patches")
    settings: RandomSettings

    def __init__(self, settings: RandomSettings | None = None) -> None:
        super().__init__(settings)
        seed = torch.tensor(self.settings.seed, device="cpu")  # loading builds models on the meta device
        self._start = int(splitmix(seed))

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        if image.ids is None:
            raise ReductionError(f"{self.name}: draws by each image's id, and no ids were given")
        counts = self.counts(image)
        size = self.width(image, counts)
        patches = torch.arange(image.features.shape[1], device=image.ids.device)
        lots = splitmix(splitmix(image.ids ^ self._start)[:, None] + patches)  # [N, P]
        keep = top_mask(lots, counts)
        index, valid = pack(keep, raster_priority(keep), size)
        return select(image.features, index), valid, index.masked_fill(~valid, -1)


def splitmix(numbers: Tensor) -> Tensor:
    """Scramble int64 numbers one by one (splitmix64): the same on every device, in every batch. [...] -> [...]"""
    numbers = numbers + _GOLDEN_RATIO
    numbers = (numbers ^ _shift_right(numbers, 30)) * _FIRST_FACTOR
    numbers = (numbers ^ _shift_right(numbers, 27)) * _SECOND_FACTOR
    return numbers ^ _shift_right(numbers, 31)


def _shift_right(numbers: Tensor, places: int) -> Tensor:
    """Logical shift; torch's own copies the sign bit."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
