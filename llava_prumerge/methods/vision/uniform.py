"""Uniform: the baseline that keeps patches at even steps of the raster.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Table 4, "Sequential". The paper does not say what that is and the authors
published no code for it. Even steps are one reading. The row is so low (TextVQA 42.72 against 46.85 for a 5 x 8 grid, POPE 11.7
against 69.8) that the other reading is just as likely: the first tokens of the raster, the top of the image (`sample: first`).
"""

from __future__ import annotations

from typing import Any

import torch

from llava_prumerge.methods.base import Reduced, ReductionError, VisionReducer, VisionTokens, register
from llava_prumerge.ops.merge import select
from llava_prumerge.ops.select import spread_index

SAMPLES = ("stride", "first")


@register("uniform")
class Uniform(VisionReducer):
    """Keep patches by their place in the raster alone.

    Args:
        sample: "stride" takes the middle of equal runs of the raster, "first" takes its beginning.
        Others: see `VisionReducer`; without a budget an image keeps as many as it has outliers.
    """

    def __init__(self, sample: str = "stride", **settings: Any) -> None:
        super().__init__(**settings)
        if sample not in SAMPLES:
            raise ReductionError(f"{self.name}: sample {sample!r} is not one of {', '.join(SAMPLES)}")
        self.sample = sample

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        counts = self.counts(image)
        size = self.width(image, counts)
        if self.sample == "stride":
            index, valid = spread_index(counts, size, image.features.shape[1])
        else:
            index = torch.arange(size, device=counts.device).expand(len(counts), -1)
            valid = index < counts[:, None]
        return select(image.features, index), valid, index.masked_fill(~valid, -1)
