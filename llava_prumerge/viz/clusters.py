"""What went into what, as a picture: each patch in the colour of the token that took most of it, and what the rest weighs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from llava_prumerge.inference.watching import Tile

GOLDEN = 0.618033988749895  # turns of the hue that never come near an earlier one
LIGHTNESS = (0.42, 0.62, 0.28)
OVER = 0.62  # how far a colour covers the image
REST, NONE = (150, 150, 150), (255, 255, 255)  # of patches in the rest alone, and in no token
LINE = (20, 20, 20)


def merges(tile: Tile) -> bool:
    """Whether a token of the tile is made of more than one patch."""
    return tile.weights is not None and bool((tile.weights != 0).sum(dim=1).gt(1).any())


def owners_of(tile: Tile) -> tuple[int, ...]:
    """For each patch the number of the token that holds most of it, -1 for none.

    A token's own patch is its own. Of equal weights the first token counts, and a token that stands for no patch (the one
    for the rest) has only what went into no other.
    """
    import torch

    if tile.weights is None:
        raise ValueError("this tile was looked at without the weights of its tokens")
    share = tile.weights.abs()
    made = torch.tensor(tile.made, dtype=torch.long)
    owners = torch.full((share.shape[1],), -1)
    for rows in ((made < 0).nonzero()[:, 0], (made >= 0).nonzero()[:, 0]):
        if len(rows):
            most, which = share[rows].max(dim=0)
            owners = torch.where(most > 0, rows[which], owners)
    for number, unit in reversed(list(enumerate(tile.made))):
        if unit >= 0 and share[number, unit] > 0:
            owners[unit] = number
    return tuple(owners.tolist())


def rest_of(tile: Tile) -> Tensor | None:
    """Weights of patches in the tokens that stand for no patch, as the grid lies; None where there are none. [rows, columns]"""
    numbers = [number for number, unit in enumerate(tile.made) if unit < 0]
    if tile.weights is None or not numbers or not bool(tile.weights[numbers].any()):
        return None
    return tile.weights[numbers].abs().sum(dim=0).view(tile.grid)


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a token's cluster; neighbours in the count look different."""
    red, green, blue = colorsys.hls_to_rgb(number * GOLDEN % 1, LIGHTNESS[number % len(LIGHTNESS)], 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def paint_clusters(image: Image, tile: Tile, size: tuple[int, int]) -> Image:
    """A tile with its clusters: colours, lines between them, a dot on the patch that a token stands for.

    Grey patches went only into tokens that stand for no patch; those without a colour went into none.
    """
    from PIL import Image, ImageDraw, ImageOps

    from llava_prumerge.viz.overlay import cell_box

    (rows, columns), owners = tile.grid, owners_of(tile)
    grey = ImageOps.grayscale(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    colours = [NONE if owner < 0 else REST if tile.made[owner] < 0 else colour_of(owner) for owner in owners]
    flat = Image.new("RGB", (columns, rows))
    flat.putdata(colours)
    painted = Image.blend(grey, flat.resize(size, Image.Resampling.NEAREST), OVER)
    pen = ImageDraw.Draw(painted)
    for unit, owner in enumerate(owners):
        left, top, right, bottom = cell_box(unit, tile.grid, size)
        if unit % columns and owners[unit - 1] != owner:
            pen.line((left, top, left, bottom), fill=LINE)
        if unit >= columns and owners[unit - columns] != owner:
            pen.line((left, top, right, top), fill=LINE)
    for unit in {unit for unit in tile.made if unit >= 0}:
        left, top, right, bottom = cell_box(unit, tile.grid, size)
        radius = max(1, min(right - left, bottom - top) // 4)
        middle = (left + right) // 2, (top + bottom) // 2
        box = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
        pen.ellipse(box, fill="white", outline=LINE)
    return painted


def largest_weights(tile: Tile, most: int = 4) -> list[list[tuple[int, float]]]:
    """For each patch the tokens that hold most of it, with its weight in them."""
    if tile.weights is None:
        return []
    values, numbers = tile.weights.abs().topk(min(most, len(tile.weights)), dim=0)
    pairs: list[list[tuple[int, float]]] = []
    for shares, which in zip(values.T.tolist(), numbers.T.tolist(), strict=True):
        pairs.append([(number, share) for share, number in zip(shares, which, strict=True) if share > 0])
    return pairs


def count_clusters(tiles: Sequence[Tile]) -> int:
    """Tokens of all tiles that patches went into."""
    return sum(len(set(owners_of(tile)) - {-1}) for tile in tiles if tile.weights is not None)
