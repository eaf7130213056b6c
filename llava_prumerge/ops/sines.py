"""Sines and cosines of places in a grid, for methods whose queries and keys must know where they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sines(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of columns, then of rows, a quarter of the width each. -> [rows * columns, C] float32"""
    quarter = width // 4
    rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def of(places: Tensor) -> Tensor:
        angles = places[:, None].double() * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = (part.flatten() for part in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return F.pad(torch.cat([of(columns), of(rows)], dim=1), (0, width - 4 * quarter)).float()
