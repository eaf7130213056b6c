"""Which patches show nothing but the padding with which LLaVA makes an image square."""

from __future__ import annotations

import torch
from torch import Tensor

FLAT = 0.02
"""How far from 0 a normalised colour of the padding may be: it is the processor's mean, in whole levels of 255."""
EDGE = 2
"""Pixels along a patch's sides that are not looked at: resizing carries colours over the border of the image."""


def padded_patches(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches of rows and columns at the border that have the padding's colour throughout.

    LLaVA pads with the mean colour, so that padding is 0 where colours are normalised. Pixels that are no picture of
    the grid's shape, as of families that pad otherwise, have none; nor has an image that is padding all over.

    Args:
        pixels: [N, 3, h, w] normalised, as the tower sees them.
        grid: (rows, columns) of patches.

    Returns:
        [N, P] bool.
    """
    rows, columns = grid
    none = torch.zeros(len(pixels), rows * columns, dtype=torch.bool, device=pixels.device)
    if pixels.dim() != 4 or pixels.shape[1] != 3 or pixels.shape[2] % rows or pixels.shape[3] % columns:
        return none
    cells = pixels.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [N, 3, rows, h', columns, w']
    if min(cells.shape[3], cells.shape[5]) <= 2 * EDGE:
        return none
    inner = cells[:, :, :, EDGE:-EDGE, :, EDGE:-EDGE]
    flat = (inner.float().abs() < FLAT).all(dim=5).all(dim=3).all(dim=1)  # [N, rows, columns]
    down, across = _from_ends(flat.all(dim=2)), _from_ends(flat.all(dim=1))
    found = (down[..., None] | across[:, None]).flatten(1)
    return found & ~found.all(dim=1, keepdim=True)


def _from_ends(flat: Tensor) -> Tensor:
    """Those in a run that begins at either end. [N, S] bool -> [N, S] bool"""
    runs = flat.long()
    return (runs.cumprod(dim=1) | runs.flip(1).cumprod(dim=1).flip(1)).bool()
