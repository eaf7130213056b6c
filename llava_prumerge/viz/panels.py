"""The pictures of one image with one method: what is kept, attention, what went into what, and each layer that drops tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava_prumerge.viz.clusters import count_clusters, merges, paint_clusters, rest_of
from llava_prumerge.viz.overlay import SIDE, paint_heat
from llava_prumerge.viz.tiles import Box, lay_tiles, paint_tiles

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from llava_prumerge.inference.asking import ImageTokens
    from llava_prumerge.inference.watching import Tile, Token

HERE, GONE = (31, 78, 121), (226, 226, 226)  # of a strip's tokens
STRIP = 22  # pixels of a strip's height


@dataclass(frozen=True)
class Drawn:
    """One image with one method, and the words that a drawing of it begins with.

    Attributes:
        image, model, method: their names; the method's with its settings.
        question: the prompt, empty where there is none.
        seen: what the method kept.
        pictures: of the tiles.
    """

    image: str
    model: str
    method: str
    question: str
    seen: ImageTokens = field(repr=False)
    pictures: Sequence[Image] = field(repr=False)

    @property
    def title(self) -> list[str]:
        """Lines: the image, the model, the method with its settings, and the question."""
        settings = self.method if any(mark in self.method for mark in " +:") else f"{self.method}, default settings"
        lines = [self.image, f"model: {self.model}", f"method: {settings}"]
        return [*lines, f"question: {self.question}"] if self.question else lines

    def describe(self) -> str:
        """One line: the method and how much it keeps."""
        seen = self.seen
        others = sum(unit < 0 for _, unit in seen.tokens)
        rest = f" ({seen.kept - others} patches, {others} for several or none)" if others else ""
        tiles = f" in {len(seen.tiles)} tiles" if len(seen.tiles) > 1 else ""
        left = "".join(f", {len(tokens)} from layer {layer} on" for layer, tokens in sorted(seen.left.items()))
        return f"{self.method}: {seen.kept} of {seen.full} tokens{tiles}{rest}{left}"


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        kind: "kept", "attention", "clusters", "rest" or "layer".
        caption: what is to be seen.
        picture: all tiles on a sheet.
        tokens: those that are marked in it; None where it marks none.
        layer: the decoder layer before which these are left; None: all layers before.
        boxes: where each tile is, for clusters.
    """

    kind: str
    caption: str
    picture: Image = field(repr=False)
    tokens: tuple[Token, ...] | None = field(default=None, repr=False)
    layer: int | None = None
    boxes: Sequence[Box] = field(default=(), repr=False)


def panels_of(drawn: Drawn, side: int = SIDE) -> list[Panel]:
    """All pictures that there are, each `side` pixels wide or high."""
    seen, pictures = drawn.seen, drawn.pictures
    kept = f"kept: {seen.kept} of {seen.full} tokens"
    found = [Panel("kept", kept, paint_tiles(seen, seen.tokens, pictures, side), seen.tokens)]
    heats = [tile.attention for tile in seen.tiles]
    if seen.tiles and all(heat is not None for heat in heats):
        found.append(_heat("attention", "attention received", seen, pictures, heats, side))
    if any(merges(tile) for tile in seen.tiles):

        def clusters(number: int, tile: Tile, picture: Image, size: tuple[int, int]) -> Image:
            return paint_clusters(picture, tile, size)

        sheet, boxes = lay_tiles(seen, pictures, clusters, side)
        count = count_clusters(seen.tiles)
        found.append(
            Panel(
                "clusters", f"what went into what: {count} tokens, a dot on the patch of each", sheet, None, None, boxes
            )
        )
        rests = [rest_of(tile) for tile in seen.tiles]
        if any(rest is not None for rest in rests):
            found.append(_heat("rest", "weights in the token for the rest", seen, pictures, rests, side))
    for layer, tokens in sorted(seen.left.items()):
        caption = f"from layer {layer} on: {len(tokens)} tokens"
        found.append(Panel("layer", caption, paint_tiles(seen, tokens, pictures, side), tokens, layer))
    return found


def _heat(
    kind: str,
    caption: str,
    seen: ImageTokens,
    pictures: Sequence[Image],
    values: Sequence[Tensor | None],
    side: int,
) -> Panel:
    import torch

    most = max(float(value.max()) for value in values if value is not None)

    def paint(number: int, tile: Tile, picture: Image, size: tuple[int, int]) -> Image:
        value = values[number]
        return paint_heat(picture, torch.zeros(tile.grid) if value is None else value, most, size)

    sheet, _ = lay_tiles(seen, pictures, paint, side)
    return Panel(kind, f"{caption}, largest {most:.3g}", sheet)


def stages_of(seen: ImageTokens) -> list[tuple[int, list[bool]]]:
    """For the decoder's first layer, and each before which tokens were dropped: which of the tokens are there.

    -> (layer, a truth value for each token that entered the decoder, in their order)
    """
    now = list(range(len(seen.tokens)))
    stages = [(0, [True] * len(now))]
    for layer, tokens in sorted(seen.left.items()):
        stays, ahead = [], iter(now)
        for token in tokens:  # the same order, of fewer
            stays.append(next(number for number in ahead if seen.tokens[number] == token))
        now = stays
        here = set(now)
        stages.append((layer, [number in here for number in range(len(seen.tokens))]))
    return stages


def paint_strip(here: Sequence[bool], width: int, height: int = STRIP) -> Image:
    """One strip: a bar for each token that entered the decoder, dark where it is still there."""
    from PIL import Image

    strip = Image.new("RGB", (max(1, len(here)), 1))
    strip.putdata([HERE if one else GONE for one in here] or [GONE])
    return strip.resize((width, height), Image.Resampling.NEAREST)
