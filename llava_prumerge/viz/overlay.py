"""Painting on an image: kept patches outlined and the others faded, or a value for each patch as a colour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SIDE = 576  # pixels of a drawn image
DIMMED = 0.78  # how far dropped patches fade to white
OUTLINE = (214, 39, 40)
HEAT = 0.75  # how far a heat map covers the image


def cell_box(index: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of a patch, all of them its own. `size` is (width, height)."""
    (rows, columns), (width, height) = grid, size
    row, column = divmod(index, columns)
    left, top = round(column * width / columns), round(row * height / rows)
    right, bottom = round((column + 1) * width / columns) - 1, round((row + 1) * height / rows) - 1
    return left, top, max(left, right), max(top, bottom)


def paint_patches(
    image: Image, grid: tuple[int, int], patches: Iterable[int], size: int | tuple[int, int] = SIDE
) -> Image:
    """An image with some patches outlined and the others faded.

    Args:
        image: as the tower sees it.
        grid: (rows, columns) of patches.
        patches: raster indices of those to outline.
        size: (width, height) of the drawing in pixels, or the side of a square one.
    """
    from PIL import Image, ImageDraw, ImageOps

    rows, columns = grid
    whole = (size, size) if isinstance(size, int) else size
    picture = image.convert("RGB").resize(whole, Image.Resampling.BICUBIC)
    faded = Image.blend(ImageOps.grayscale(picture).convert("RGB"), Image.new("RGB", picture.size, "white"), DIMMED)
    kept = set(patches)
    mask = Image.new("L", (columns, rows))
    mask.putdata([255 * (index in kept) for index in range(rows * columns)])
    painted = Image.composite(picture, faded, mask.resize(picture.size, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(painted)
    for index in kept:
        pen.rectangle(cell_box(index, grid, whole), outline=OUTLINE)
    return painted


def paint_heat(image: Image, values: Tensor, most: float, size: int | tuple[int, int] = SIDE) -> Image:
    """An image in grey with a value for each patch as a colour, from dark (0) to bright (`most`).

    Attention is sparse: colours follow the square root, for on a linear scale all but the strongest patches look alike.

    Args:
        image: as the tower sees it.
        values: [rows, columns], none below 0.
        most: the value of the brightest colour.
        size: as of `paint_patches`.
    """
    from matplotlib import colormaps
    from PIL import Image, ImageOps

    whole = (size, size) if isinstance(size, int) else size
    grey = ImageOps.grayscale(image).convert("RGB").resize(whole, Image.Resampling.BICUBIC)
    scaled = (values.float() / max(most, 1e-12)).clamp(0, 1).sqrt().numpy()
    colours = Image.fromarray((colormaps["inferno"](scaled)[..., :3] * 255).astype("uint8"))
    return Image.blend(grey, colours.resize(whole, Image.Resampling.NEAREST), HEAT)
