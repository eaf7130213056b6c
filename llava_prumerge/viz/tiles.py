"""Images that a model cuts into tiles, or sees at their own size: each tile as the tower saw it, laid out on one sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llava_prumerge.viz.overlay import SIDE, paint_patches

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from llava_prumerge.inference.asking import ImageTokens
    from llava_prumerge.inference.watching import Tile

ACROSS = 4
"""Tiles beside each other in a drawing."""
GAP = 6
NEUTRAL = ([0.5] * 3, [0.5] * 3)  # of processors that do not say how they normalise

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


def colours(pixels: Tensor, image_processor: Any) -> Image:
    """A tile [3, h, w] with normalised colours as a picture."""
    import torch
    from PIL import Image

    mean, spread = (
        torch.tensor(getattr(image_processor, name, None) or other)[:, None, None]
        for name, other in zip(("image_mean", "image_std"), NEUTRAL, strict=True)
    )
    values = ((pixels * spread + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def pictures_of(seen: ImageTokens, image: Image, image_processor: Any) -> list[Image]:
    """Each tile as the tower saw it; the image itself where the pixels of a tile are no picture."""
    return [image if tile.pixels is None else colours(tile.pixels, image_processor) for tile in seen.tiles]


def sizes_of(pictures: Sequence[Image], side: int = SIDE) -> list[tuple[int, int]]:
    """(width, height) in pixels of each tile on a sheet, the longer side of the largest tile alone on one being `side`."""
    across = min(ACROSS, len(pictures))
    longest = side if len(pictures) == 1 else max(side // across, side // 3)
    scale = longest / max(max(picture.size) for picture in pictures)
    return [(max(1, round(picture.width * scale)), max(1, round(picture.height * scale))) for picture in pictures]


def lay(parts: Sequence[Image]) -> tuple[Image, list[Box]]:
    """Painted tiles on one sheet, and where each of them is."""
    from PIL import Image

    across = min(ACROSS, len(parts))
    rows = [parts[start : start + across] for start in range(0, len(parts), across)]
    width = max(sum(part.width for part in row) + GAP * (len(row) - 1) for row in rows)
    heights = [max(part.height for part in row) for row in rows]
    sheet, boxes, top = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) - 1)), "white"), [], 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for part in row:
            sheet.paste(part, (left, top))
            boxes.append((left, top, part.width, part.height))
            left += part.width + GAP
        top += height + GAP
    return sheet, boxes


def lay_tiles(
    seen: ImageTokens,
    pictures: Sequence[Image],
    paint: Callable[[int, Tile, Image, tuple[int, int]], Image],
    side: int = SIDE,
) -> tuple[Image, list[Box]]:
    """All tiles of an image on one sheet, each painted by `paint` (its number, tile, picture, size), and where they are."""
    sizes = sizes_of(pictures, side)
    given = zip(seen.tiles, pictures, sizes, strict=True)
    return lay([paint(number, *one) for number, one in enumerate(given)])


def paint_tiles(
    seen: ImageTokens, tokens: Sequence[tuple[int, int]], pictures: Sequence[Image], side: int = SIDE
) -> Image:
    """All tiles of an image on one sheet, kept patches outlined and the others faded.

    Args:
        seen: what is known of the image.
        tokens: those that are kept: tile, and unit in it.
        pictures: of the tiles.
        side: pixels of the longer side of the largest tile; a sheet of several tiles has smaller ones.
    """

    def paint(number: int, tile: Tile, picture: Image, size: tuple[int, int]) -> Image:
        units = {unit for owner, unit in tokens if owner == number and unit >= 0}
        return paint_patches(picture, tile.grid, units, size)

    return lay_tiles(seen, pictures, paint, side)[0]
