"""Paints a pocket scene into a photograph of 336 pixels, and tells which of the 24 x 24 patches show which item.

Shapes are outlined in white, words stand on a light plate. Place, size and tone of an item, and the photograph, follow
from the seed; nothing that is asked does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from playground.photos.backgrounds import SIDE, Photographs, Textures
from playground.pocket.scenes import GRID, Object, Scene, Word, draw_shape, jittered_colour

CELL = SIDE // GRID
PATCH = 14
PATCHES = SIDE // PATCH
SCALE = 3  # drawn large and shrunk, so that edges are smooth
EXTENT = (56.0, 84.0)
OUTLINE, MARGIN, LETTERS = 3, 5, 40
WHITE, PLATE = (255, 255, 255), (245, 245, 245)
COVERED = 0.4
"""Share of a patch that an item must cover for the patch to show it."""
NOTHING = -1


@cache
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, which comes with matplotlib: the same letters on every machine."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")), LETTERS * SCALE)


@dataclass(frozen=True)
class Painting:
    """One picture being made: everything in `SCALE` times its pixels.

    Attributes:
        colours: of the items, with an alpha channel.
        items: number of the item that is seen at each pixel, from 1.
    """

    colours: ImageDraw.ImageDraw
    items: ImageDraw.ImageDraw

    def add_object(self, item: Object, number: int, rng: random.Random) -> None:
        """Draw a shape with its outline."""
        r = rng.uniform(*EXTENT) / 2
        slack = max(0.0, CELL / 2 - r - OUTLINE - 1)
        x, y = ((place + 0.5) * CELL + rng.uniform(-slack, slack) for place in (item.col, item.row))
        centre, r = (x * SCALE, y * SCALE), r * SCALE
        fill = jittered_colour(item, rng)
        draw_shape(self.colours, item.shape, centre, r, fill, (WHITE, OUTLINE * SCALE))
        draw_shape(self.items, item.shape, centre, r, number)

    def add_word(self, item: Word, number: int, rng: random.Random) -> None:
        """Print a word on its plate."""
        left, top, right, bottom = self.colours.textbbox((0, 0), item.text, font=font())
        width, height, margin = right - left, bottom - top, MARGIN * SCALE
        x, y = (
            (place + 0.5) * CELL * SCALE
            - extent / 2
            + rng.uniform(-1, 1) * max(0.0, CELL * SCALE - extent - 2 * margin) / 2
            for place, extent in ((item.col, width), (item.row, height))
        )
        plate = (x - margin, y - margin, x + width + margin, y + height + margin)
        self.colours.rectangle(plate, fill=PLATE)
        self.colours.text((x - left, y - top), item.text, font=font(), fill=(rng.randint(0, 40),) * 3)
        self.items.rectangle(plate, fill=number)


@dataclass(frozen=True)
class Painter:
    """Paints scenes on backgrounds.

    Args:
        ground: of one split.
    """

    ground: Photographs | Textures

    def draw(self, scene: Scene, seed: int) -> tuple[Image.Image, Image.Image]:
        """The items with alpha, and their numbers from 1, both `SCALE` times too large; 0 where there is none."""
        rng = random.Random(f"{scene.key}/{seed}")
        size = (SIDE * SCALE, SIDE * SCALE)
        colours, items = Image.new("RGBA", size), Image.new("L", size)
        painting = Painting(ImageDraw.Draw(colours), ImageDraw.Draw(items))
        for number, item in enumerate((*scene.objects, *scene.words), start=1):
            if isinstance(item, Word):
                painting.add_word(item, number, rng)
            else:
                painting.add_object(item, number, rng)
        return colours, items

    def __call__(self, scene: Scene, seed: int) -> Image.Image:
        """The picture, [SIDE, SIDE] RGB."""
        ground = self.ground.draw(random.Random(f"{scene.key}/{seed}/ground"))
        colours, _ = self.draw(scene, seed)
        small = colours.resize((SIDE, SIDE), Image.Resampling.BOX)
        ground.paste(small, (0, 0), small.getchannel("A"))
        return ground

    def patches(self, scene: Scene, seed: int) -> np.ndarray:
        """Which item each patch shows, [PATCHES, PATCHES]: its number in (objects, words) from 0, or `NOTHING`."""
        _, items = self.draw(scene, seed)
        side = PATCH * SCALE
        cut = np.asarray(items).reshape(PATCHES, side, PATCHES, side).swapaxes(1, 2).reshape(PATCHES, PATCHES, -1)
        shown = np.full((PATCHES, PATCHES), NOTHING)
        for number in range(len(scene.objects) + len(scene.words)):
            shown[(cut == number + 1).mean(axis=-1) >= COVERED] = number
        return shown

    def regions(self, scene: Scene, seed: int) -> list[dict[str, Any]]:
        """Boxes of whole patches with the words that say what is there: left, top, right, bottom as fractions of the picture."""
        items = [*scene.objects, *scene.words]
        return [{"box": box, "text": words_for(items[number])} for box, number in boxes(self.patches(scene, seed))]


def words_for(item: Object | Word) -> str:
    """An item in the words that the language model knows it by, its place included."""
    return f"word {item.text} {item.place}" if isinstance(item, Word) else f"{item.name} {item.place}"


def boxes(shown: np.ndarray) -> Iterator[tuple[list[float], int]]:
    """Rows of neighbouring patches that show the same item, each as a box with the item's number."""
    for row, line in enumerate(shown):
        column = 0
        for number, run in groupby(line.tolist()):
            length = len(list(run))
            if number != NOTHING:
                box = (column, row, column + length, row + 1)
                yield [round(side / PATCHES, 4) for side in box], number
            column += length
