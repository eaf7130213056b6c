"""Random: the baseline that keeps patches drawn by lot.

No paper of its own; the row every table of token reduction needs. The lot is a hash of (image, patch, seed), not a generator's
state: an image keeps the same patches in any batch, on any device, in training and in evaluation.
"""

from __future__ import annotations

from typing import Any

import torch

from llava_prumerge.methods.base import Reduced, ReductionError, VisionReducer, VisionTokens, register
from llava_prumerge.ops.merge import select
from llava_prumerge.ops.select import pack, raster_priority, splitmix, top_mask


@register("random")
class RandomSample(VisionReducer):
    """Keep patches drawn by lot, in raster order.

    Args:
        seed: of the lot.
        Others: see `VisionReducer`; without a budget an image keeps as many as it has outliers.
    """

    needs_ids = True

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
            raise ReductionError(f"{self.name}: seed {seed!r} is not a whole number of 64 bits")
        self.seed = seed
        self._start = int(splitmix(torch.tensor(seed, device="cpu")))  # loading builds models on the meta device

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
