"""Downsample: the baseline that shows the tower a smaller image.

Resizing before the tower is the cheapest way to fewer visual tokens: the tower itself runs on fewer. The model resizes the pixels to
`input_size` and interpolates the tower's position embeddings.
"""

from __future__ import annotations

import torch

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import TokensLeft
from llava_prumerge.methods.reducers import CellReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.ops.cells import rectangle
from llava_prumerge.ops.errors import ReductionError


@register("downsample")
class Downsample(CellReducer):
    """Resize the image so that the tower gives rows x columns tokens, or `budget` of them as square as they can be.

    Without a setting it has half as many rows and columns as before, a quarter of the tokens. There is no adaptive form:
    outliers could be counted only after the tower has run. `origin` counts on the smaller grid.
    """

    def input_size(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """Pixels the tower should see, (height, width)."""
        rows, columns = self.smaller(height // patch, width // patch)
        return (
            (height, width) if (rows, columns) == (height // patch, width // patch) else (rows * patch, columns * patch)
        )

    def smaller(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in place of height x width."""
        self.fitted(height, width)
        if self.budget is None:
            return -(-height // 2), -(-width // 2)
        if self.budget >= height * width:
            return height, width
        if self.settings.rows is not None and self.settings.columns is not None:
            return self.settings.rows, self.settings.columns
        try:
            return rectangle(self.budget, height, width)
        except ValueError as error:
            raise ReductionError(f"{self.name}: {error}") from error

    def tokens_left(self, patches: int) -> TokensLeft:
        """All that the tower then sees; without a setting of a square grid."""
        if self.budget is not None:
            return super().tokens_left(patches)
        half = -(-round(patches**0.5) // 2)
        return TokensLeft(half * half, "half as many rows and columns")

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, P, C] unchanged, of the smaller image."""
        images, patches = image.features.shape[:2]
        wanted = (self.settings.rows, self.settings.columns)
        if self.budget is not None and (patches > self.budget or (wanted[0] is not None and image.grid != wanted)):
            asked = self.budget if wanted[0] is None else f"{wanted[0]} x {wanted[1]}"
            found = f"{image.grid[0]} x {image.grid[1]}"
            raise ReductionError(f"{self.name}: the tower gave {found} tokens, not {asked}; resize to input_size first")
        self.width(image, torch.full((images,), patches, device=image.features.device))
        origin = torch.arange(patches, device=image.features.device).expand(images, patches)
        return image.features, torch.ones_like(origin, dtype=torch.bool), origin
