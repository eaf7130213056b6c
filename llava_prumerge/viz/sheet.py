"""A drawing as one PNG: the title, the pictures beside each other, and a strip of tokens for each layer that drops some."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.viz.panels import STRIP, Drawn, Panel, paint_strip, panels_of, stages_of

if TYPE_CHECKING:
    from PIL.Image import Image

PANEL = 380  # pixels of a picture; words are large enough to be read at half of that
ACROSS = 3
MARGIN, LINE = 16, 27
WORDS, TITLE = 19, 22  # pixels of letters
NARROWEST = 2  # pictures' widths


@functools.lru_cache(maxsize=4)
def _font(size: int, bold: bool = False) -> Any:
    """The font that matplotlib brings: the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than so many pixels, broken between words, and within a word that is too long by itself."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def sheet_of(drawn: Drawn) -> Image:
    """The whole drawing."""
    panels = panels_of(drawn, PANEL)
    across = 2 if len(panels) == 4 else min(ACROSS, len(panels))
    width = max(across, NARROWEST) * (PANEL + MARGIN) + MARGIN
    parts = [_words(drawn.title, width, TITLE)]
    for start in range(0, len(panels), across):
        parts.append(_row(panels[start : start + across], width))
    if drawn.seen.left:
        parts.append(_strips(drawn, width))
    return _stacked(parts, width)


def write_sheet(drawn: Drawn, path: Path) -> Path:
    """Write the drawing. -> its path"""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet_of(drawn).save(path, "PNG")
    return path


def _blank(width: int, height: int) -> tuple[Image, Any]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), "white")
    return picture, ImageDraw.Draw(picture)


def _words(texts: Sequence[str], width: int, size: int) -> Image:
    """Lines of text, the first one bold."""
    room = width - 2 * MARGIN
    lines = [
        (line, _font(size, number == 0))
        for number, text in enumerate(texts)
        for line in wrapped(text, _font(size, number == 0), room)
    ]
    picture, pen = _blank(width, MARGIN + LINE * len(lines))
    for number, (line, font) in enumerate(lines):
        pen.text((MARGIN, MARGIN + LINE * number), line, font=font, fill="black")
    return picture


def _row(panels: Sequence[Panel], width: int) -> Image:
    """Pictures beside each other below their captions."""
    font = _font(WORDS)
    captions = [wrapped(panel.caption, font, PANEL) for panel in panels]
    top = MARGIN + LINE * max(map(len, captions))
    picture, pen = _blank(width, top + max(panel.picture.height for panel in panels))
    for number, (panel, lines) in enumerate(zip(panels, captions, strict=True)):
        left = MARGIN + number * (PANEL + MARGIN)
        for at, line in enumerate(lines):
            pen.text((left, MARGIN + LINE * at), line, font=font, fill="black")
        picture.paste(panel.picture, (left, top))
    return picture


def _strips(drawn: Drawn, width: int) -> Image:
    """A strip for the first layer and for each that drops tokens, with its number and count."""
    font, stages = _font(WORDS), stages_of(drawn.seen)
    names = [f"layer {layer}: {sum(here)}" for layer, here in stages]
    left = MARGIN + max(round(font.getlength(name)) for name in names) + MARGIN
    head = "tokens in their order, dark where the layer still sees them"
    picture, pen = _blank(width, MARGIN + LINE + len(stages) * LINE)
    pen.text((MARGIN, MARGIN), head, font=font, fill="black")
    for number, (name, (_, here)) in enumerate(zip(names, stages, strict=True)):
        top = MARGIN + LINE * (number + 1)
        pen.text((MARGIN, top), name, font=font, fill="black")
        picture.paste(paint_strip(here, width - left - MARGIN, STRIP), (left, top))
    return picture


def _stacked(parts: Sequence[Image], width: int) -> Image:
    picture, _ = _blank(width, sum(part.height for part in parts) + MARGIN)
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture
