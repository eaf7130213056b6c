"""Grid: the baseline that keeps patches of a regular two-dimensional grid.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Table 4, "Spatial" (5x8, 6x6, 6x7 ...). The authors published no code for
it; our reading: the middle patch of each of rows x columns equal cells.
"""

from __future__ import annotations

from llava_prumerge.methods.base import CellReducer, Reduced, VisionTokens, register
from llava_prumerge.ops.merge import select


@register("grid")
class Grid(CellReducer):
    """Keep the middle patch of each cell. Settings: see `CellReducer`; without any, as many cells as the image has outliers."""

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        cells = self.cells(image)
        index = cells.centres()
        return select(image.features, index), cells.valid, index.masked_fill(~cells.valid, -1)
