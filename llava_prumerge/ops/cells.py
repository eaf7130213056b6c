"""Cutting the patch grid into cells: for each image of a batch its own number of them, and any number.

Cells lie in rows from top to bottom. Where their number is not rows x columns, some rows have one cell more than others. Within a
row and down the rows they are cut as in `torch.nn.functional.adaptive_avg_pool2d`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNEVEN_COST = 2.0
"""A rectangle is preferred unless its cells are this much further from square than those of the best uneven rows."""


@dataclass(frozen=True)
class Cells:
    """K cells of each image's grid, in raster order.

    Attributes:
        row, column: [N, K] place of the cell.
        rows: [N, 1] rows of cells of the image.
        columns: [N, K] cells in the cell's row.
        valid: [N, K] bool, False where an image has fewer than K cells.
        grid: (height, width) in patches.
    """

    row: Tensor
    column: Tensor
    rows: Tensor
    columns: Tensor
    valid: Tensor
    grid: tuple[int, int]

    def centres(self) -> Tensor:
        """Raster index of each cell's middle patch. [N, K]"""
        height, width = self.grid
        across = (2 * self.column + 1) * width // (2 * self.columns)
        return (2 * self.row + 1) * height // (2 * self.rows) * width + across

    def averages(self) -> Tensor:
        """Matrix that averages the patches of each cell. [N, K, P]"""
        height, width = self.grid
        down = _overlap(self.row, self.rows, height)  # [N, K, height]
        across = _overlap(self.column, self.columns, width)  # [N, K, width]
        inside = (down[..., None] & across[:, :, None]).flatten(2).float()  # [N, K, P]
        return inside / inside.sum(dim=2, keepdim=True)


def _overlap(place: Tensor, parts: Tensor, size: int) -> Tensor:
    """Which of `size` patches the `place`-th of `parts` parts covers; neighbours share a patch that both touch. -> [N, K, size]"""
    index = torch.arange(size, device=place.device)
    begin = place * size // parts
    end = ((place + 1) * size + parts - 1) // parts
    return (index >= begin[..., None]) & (index < end[..., None])


def cell_rows(counts: Tensor, height: int, width: int) -> Tensor:
    """In how many rows to lay `counts` cells: as square as can be, in a full rectangle where one comes near. [N] -> [N]

    40 cells of a 24 x 24 grid lie as 5 x 8, 37 as six rows of six and one of seven among them.
    """
    rows = torch.arange(1, height + 1, device=counts.device)
    columns = (counts[:, None] + rows - 1) // rows  # [N, height]
    across, down = columns * height, rows * width
    squareness = torch.maximum(across, down) / torch.minimum(across, down)
    cost = squareness * torch.where(rows * columns == counts[:, None], 1.0, UNEVEN_COST)
    fits = (columns <= width) & (rows <= counts[:, None])
    return cost.masked_fill(~fits, torch.inf).argmin(dim=1) + 1


def lay_cells(counts: Tensor, rows: Tensor, size: int, grid: tuple[int, int]) -> Cells:
    """Lay `counts` cells in `rows` rows. [N], [N] -> Cells of K = size, at least the largest count."""
    counts, rows = counts[:, None], rows[:, None]
    number = torch.arange(size, device=counts.device)  # [K]
    valid = number < counts
    row = torch.minimum(number * rows // counts, rows - 1)  # [N, K]
    begin = (row * counts + rows - 1) // rows
    columns = ((row + 1) * counts + rows - 1) // rows - begin
    column = torch.minimum(number - begin, columns - 1)
    return Cells(row, column, rows, columns, valid, grid)
