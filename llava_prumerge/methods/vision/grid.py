"""Grid: the baseline that keeps patches of a regular two-dimensional grid.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Table 4, "Spatial" (5x8, 6x6, 6x7 ...). The authors published no code for
it; our reading: the middle patch of each of rows x columns equal cells.
"""

from __future__ import annotations

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import CellReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.ops.select import select


@register("grid")
class Grid(CellReducer):
    """Keep the middle patch of each cell. Without a setting there are as many cells as the image has outliers."""

    paper = "LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Spatial in Table 4"
    call_limit = CallLimit(46, why="rows and columns of the cells are laid for each image")

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        cells = self.cells(image)
        index = cells.centres()
        return select(image.features, index), cells.valid, index.masked_fill(~cells.valid, -1)
