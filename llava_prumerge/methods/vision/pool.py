"""Pool: the baseline that averages the patches of each cell.

Adaptive average pooling, the plainest way to fewer visual tokens; equal to `torch.nn.functional.adaptive_avg_pool2d` where the
cells are rows x columns. As one matrix product it also serves images that get different numbers of cells.
"""

from __future__ import annotations

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import CellReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.ops.select import mix


@register("pool")
class Pool(CellReducer):
    """Average each cell. Without a setting there are as many cells as the image has outliers."""

    call_limit = CallLimit(64, why="rows and columns of the cells are laid for each image, and averaged by a matrix")

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]; a cell's origin is its middle patch."""
        cells = self.cells(image)
        return mix(cells.averages(), image.features), cells.valid, cells.centres().masked_fill(~cells.valid, -1)
