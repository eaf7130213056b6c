"""Drawing images that a model cuts into tiles, or sees at their own size: each tile as the tower saw it, with what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.viz.overlay import SIDE, paint_patches

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from llava_prumerge.inference.asking import ImageTokens

ACROSS = 4
"""Tiles beside each other in a drawing."""
GAP = 6
NEUTRAL = ([0.5] * 3, [0.5] * 3)  # of processors that do not say how they normalise


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
    from PIL import Image

    across = min(ACROSS, len(pictures))
    longest = side if len(pictures) == 1 else max(side // across, side // 3)
    largest = max(max(picture.size) for picture in pictures)
    painted = []
    for number, (tile, picture) in enumerate(zip(seen.tiles, pictures, strict=True)):
        scale = longest / largest
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        units = {unit for owner, unit in tokens if owner == number and unit >= 0}
        painted.append(paint_patches(picture, tile.grid, units, size))
    rows = [painted[start : start + across] for start in range(0, len(painted), across)]
    width = max(sum(part.width for part in row) + GAP * (len(row) - 1) for row in rows)
    heights = [max(part.height for part in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for part in row:
            sheet.paste(part, (left, top))
            left += part.width + GAP
        top += height + GAP
    return sheet


def describe_tiles(seen: ImageTokens, method: str) -> str:
    """One line: the method and how much it keeps."""
    others = sum(unit < 0 for _, unit in seen.tokens)
    rest = f" ({seen.kept - others} patches, {others} others)" if others else ""
    tiles = f" in {len(seen.tiles)} tiles" if len(seen.tiles) > 1 else ""
    return f"{method}: {seen.kept} of {seen.full} tokens{tiles}{rest}"


def write_tiles(seen: ImageTokens, image: Image, image_processor: Any, method: str, path: Path) -> Path:
    """Write a PNG: kept patches of all tiles on the left, the attention each tile's patches receive on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    pictures = pictures_of(seen, image, image_processor)
    across = min(ACROSS, len(pictures))
    rows = -(-len(pictures) // across)
    sheet = paint_tiles(seen, seen.tokens, pictures)
    height = 6.2 * sheet.height / sheet.width + 0.6
    figure = Figure(figsize=(12.4, min(max(height, 1.8), 24.0)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    panel = left.subplots()
    panel.imshow(sheet)
    panel.set_title(describe_tiles(seen, method), fontsize=12)
    panel.set_axis_off()
    heats = [tile.attention for tile in seen.tiles if tile.attention is not None]
    most = max(heat.max().item() for heat in heats)
    right.suptitle(f"attention received, largest {most:.3f}", fontsize=12)
    for at, panel in enumerate(right.subplots(rows, across, squeeze=False).flat):
        panel.set_axis_off()
        if at < len(pictures):
            frame = (0, pictures[at].width, pictures[at].height, 0)
            panel.imshow(pictures[at].convert("L"), cmap="gray", extent=frame)
            panel.imshow(
                heats[at].numpy(), cmap="inferno", norm=PowerNorm(0.5, vmin=0.0, vmax=most), alpha=0.75, extent=frame
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
