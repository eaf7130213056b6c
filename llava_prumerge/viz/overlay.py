"""Drawing a selection: kept patches on the image, and the attention they were chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.viz.selection import SIDE, Selection

if TYPE_CHECKING:
    from PIL.Image import Image

DIMMED = 0.78  # how far dropped patches fade to white
OUTLINE = (214, 39, 40)


def paint_kept(selection: Selection, side: int = SIDE) -> Image:
    """The image with dropped patches faded and kept ones outlined."""
    return paint_patches(selection.image, selection.grid, selection.patches, side)


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
    width, height = (size, size) if isinstance(size, int) else size
    picture = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    faded = Image.blend(ImageOps.grayscale(picture).convert("RGB"), Image.new("RGB", picture.size, "white"), DIMMED)
    kept = set(patches)
    mask = Image.new("L", (columns, rows))
    mask.putdata([255 * (index in kept) for index in range(rows * columns)])
    painted = Image.composite(picture, faded, mask.resize(picture.size, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(painted)
    for index in kept:
        row, column = divmod(index, columns)
        left, top = round(column * width / columns), round(row * height / rows)
        right, bottom = round((column + 1) * width / columns) - 1, round((row + 1) * height / rows) - 1
        right, bottom = max(left, right), max(top, bottom)
        pen.rectangle((left, top, right, bottom), outline=OUTLINE)
    return painted


def describe(selection: Selection, method: str) -> str:
    """One line: the method and how much it keeps."""
    merged = selection.origin.count(-1)
    rest = f" ({len(selection.patches)} patches, {merged} for the rest)" if merged else ""
    return f"{method}: {selection.tokens} of {selection.full} tokens{rest}"


def write_overlay(selection: Selection, method: str, path: str | Path) -> Path:
    """Write a PNG: kept patches on the left, received attention on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from PIL import Image, ImageOps

    figure = Figure(figsize=(12.4, 6.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(paint_kept(selection))
    left.set_title(describe(selection, method), fontsize=12)
    frame = (0, SIDE, SIDE, 0)
    grey = ImageOps.grayscale(selection.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    right.imshow(grey, cmap="gray", extent=frame)
    attention = selection.attention.numpy()
    # Attention is sparse: on a linear scale all but the strongest patches would look alike.
    heat = right.imshow(attention, cmap="inferno", norm=PowerNorm(0.5, vmin=0.0), alpha=0.75, extent=frame)
    source = "class token's attention" if selection.class_token else "mean attention received"
    right.set_title(f"{source}, largest {attention.max():.3f}", fontsize=12)
    figure.colorbar(heat, ax=right, shrink=0.85)
    for panel in (left, right):
        panel.set_axis_off()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
