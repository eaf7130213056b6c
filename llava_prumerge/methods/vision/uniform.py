"""Uniform: the baseline that keeps patches at even steps of the raster.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Table 4, "Sequential". The paper does not say what that is and the authors
published no code for it. Even steps are one reading. The row is so low (TextVQA 42.72 against 46.85 for a 5 x 8 grid, POPE 11.7
against 69.8) that the other reading is just as likely: the first tokens of the raster, the top of the image (`sample: first`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.reducers import OutlierReducer, OutlierSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import setting
from llava_prumerge.ops.select import select, spread_index


@dataclass(frozen=True, kw_only=True)
class UniformSettings(OutlierSettings):
    """Without a budget an image keeps as many as it has outliers."""

    sample: Literal["stride", "first"] = setting(
        "stride", "stride takes the middle of equal runs of the raster, first takes its beginning", source="our reading"
    )


@register("uniform")
class Uniform(OutlierReducer):
    """Keep patches by their place in the raster alone."""

    paper = "LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Sequential in Table 4"
    settings: UniformSettings

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        counts = self.counts(image)
        size = self.width(image, counts)
        if self.settings.sample == "stride":
            index, valid = spread_index(counts, size, image.features.shape[1])
        else:
            index = torch.arange(size, device=counts.device).expand(len(counts), -1)
            valid = index < counts[:, None]
        return select(image.features, index), valid, index.masked_fill(~valid, -1)
