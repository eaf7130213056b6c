"""Cutting the patch grid into cells: for each image of a batch its own number of them, and any number.

Cells lie in rows from top to bottom. Where their number is not rows x columns, some rows have one cell more than others. Within a
row and down the rows they are cut as in `torch.nn.functional.adaptive_avg_pool2d`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llava_prumerge.ground.errors import InputError

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
        across = (2 * width * self.column + width) // (2 * self.columns)
        return (2 * height * self.row + height) // (2 * self.rows) * width + across

    def averages(self) -> Tensor:
        """Matrix that averages the patches of each cell. [N, K, P]"""
        height, width = self.grid
        down = _overlap(self.row, self.rows, height)  # [N, K, height]
        across = _overlap(self.column, self.columns, width)  # [N, K, width]
        inside = (down[..., None] & across[:, :, None]).flatten(2).float()  # [N, K, P]
        return inside / inside.sum(dim=2, keepdim=True)


def _overlap(place: Tensor, parts: Tensor, size: int) -> Tensor:
    """Which of `size` patches the `place`-th of `parts` parts covers; neighbours share a patch that both touch. -> [N, K, size]

    A part covers [place, place + 1) * size / parts; times `parts`, that patch i begins less than `size` behind the
    part's beginning and less than `parts` before it.
    """
    index = torch.arange(size, device=place.device)
    behind = index * parts[..., None] - (place * size)[..., None]  # [N, K, size]
    return (behind < size) & (behind > -parts[..., None])


def best_rows(count: int, height: int, width: int) -> int:
    """In how many rows to lay `count` cells: as square as can be, in a full rectangle where one comes near.

    40 cells of a 24 x 24 grid lie as 5 x 8, 37 as six rows of six and one of seven among them.
    """

    def cost(rows: int) -> float:
        across, down = -(-count // rows) * height, rows * width
        return max(across, down) / min(across, down) * (1.0 if count % rows == 0 else UNEVEN_COST)

    fitting = [rows for rows in range(1, min(height, count) + 1) if -(-count // rows) <= width]
    return min(fitting, key=cost, default=1)


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def _rows_by_count(height: int, width: int, device: torch.device) -> Tensor:
    """`best_rows` of every number of cells there can be, so that a batch looks its numbers up in one call. [P + 1]"""
    return torch.tensor([best_rows(count, height, width) for count in range(height * width + 1)], device=device)


def cell_rows(counts: Tensor, height: int, width: int) -> Tensor:
    """`best_rows` of each image's number of cells. [N] -> [N]"""
    return _rows_by_count(height, width, counts.device)[counts]


def lay_cells(counts: Tensor, rows: Tensor, size: int, grid: tuple[int, int]) -> Cells:
    """Lay `counts` cells in `rows` rows. [N], [N] -> Cells of K = size, at least the largest count."""
    counts, rows = counts[:, None], rows[:, None]
    number = torch.arange(size, device=counts.device)  # [K]
    last = counts - 1
    at = torch.minimum(number, last) * rows  # [N, K], what is not valid repeats the last cell
    row, ahead = at // counts, at % counts
    column = ahead // rows
    return Cells(row, column, rows, column + (last - ahead) // rows + 1, number < counts, grid)


def rectangle(count: int, height: int, width: int) -> tuple[int, int]:
    """The most nearly square grid of exactly `count` cells that fits into height x width, as (rows, columns).

    Raises:
        InputError: no such grid exists (a prime larger than a side, say).
    """
    fitting = [(rows, count // rows) for rows in range(1, height + 1) if count % rows == 0 and count // rows <= width]
    if not fitting:
        raise InputError(f"budget {count} is not rows x columns of a grid within {height} x {width}")
    return min(fitting, key=lambda cells: abs(cells[0] - cells[1]))
