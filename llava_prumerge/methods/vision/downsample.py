"""Downsample: the baseline that shows the tower a smaller image.

Resizing before the tower is the cheapest way to fewer visual tokens: the tower itself runs on fewer. The model resizes the pixels to
`input_size` and interpolates the tower's position embeddings.
"""

from __future__ import annotations

from typing import Any

import torch

from llava_prumerge.methods.base import CellReducer, Reduced, ReductionError, VisionTokens, register
from llava_prumerge.ops.select import rectangle


@register("downsample")
class Downsample(CellReducer):
    """Resize the image so that the tower gives rows x columns tokens, or `budget` of them as square as they can be.

    There is no adaptive form: outliers could be counted only after the tower has run. `origin` counts on the smaller grid.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.budget is None:
            raise ReductionError(f"{self.name}: give budget, or rows and columns: before the tower no outlier is known")

    def input_size(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """Pixels the tower should see, (height, width)."""
        down, across = height // patch, width // patch
        self.fitted(down, across)
        if self.budget >= down * across:
            return height, width
        try:
            rows, columns = (self.rows, self.columns) if self.rows is not None else rectangle(self.budget, down, across)
        except ValueError as error:
            raise ReductionError(f"{self.name}: {error}") from error
        return rows * patch, columns * patch

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, P, C] unchanged, of the smaller image."""
        images, patches = image.features.shape[:2]
        if patches > self.budget or (self.rows is not None and image.grid != (self.rows, self.columns)):
            asked = self.budget if self.rows is None else f"{self.rows} x {self.columns}"
            found = f"{image.grid[0]} x {image.grid[1]}"
            raise ReductionError(f"{self.name}: the tower gave {found} tokens, not {asked}; resize to input_size first")
        self.width(image, self.counts(image))
        origin = torch.arange(patches, device=image.features.device).expand(images, patches)
        return image.features, torch.ones_like(origin, dtype=torch.bool), origin
