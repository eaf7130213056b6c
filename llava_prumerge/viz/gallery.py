"""Several images and methods side by side, as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from llava_prumerge.ground.files import write_text
from llava_prumerge.viz.clusters import largest_weights
from llava_prumerge.viz.panels import Drawn, Panel, paint_strip, panels_of, stages_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_prumerge.inference.watching import Token

PAGE = Path(__file__).with_name("gallery.html")
SIDE = 300  # pixels of a picture
QUALITY = 90
HOVER = "Point at a patch to see which tokens it went into."


class Gallery:
    """Takes drawings one after the other, and writes the page; what is painted is held, models and images are not."""

    def __init__(self) -> None:
        self.of_image: dict[str, list[str]] = {}
        self.names: dict[str, str] = {}
        self.models: list[str] = []
        self.questions: list[str] = []

    def add(self, drawn: Drawn, where: str = "") -> None:
        """Paint one image with one method.

        Args:
            drawn: what is to be seen.
            where: tells apart images of the same name, such as their paths; the page does not show it.
        """
        name, where = drawn.image, where or drawn.image
        if where not in self.names:
            alike = sum(Path(other).name == Path(where).name for other in self.names)
            self.names[where] = f"{name} ({alike + 1})" if alike else name
        self.of_image.setdefault(self.names[where], []).append(_card(drawn))
        for listed, word in ((self.models, drawn.model), (self.questions, drawn.question)):
            if word and word not in listed:
                listed.append(word)

    def html(self) -> str:
        """The page."""
        about = [f"Model: {', '.join(self.models)}."]
        if self.questions:
            about.append(f"Question: {' / '.join(self.questions)}")
        images = [
            f'<section data-image="{escape(name)}"><h2>{escape(name)}</h2><div class="methods">{"".join(cards)}</div></section>'
            for name, cards in self.of_image.items()
        ]
        return Template(PAGE.read_text("utf-8")).substitute(about=escape(" ".join(about)), images="\n".join(images))

    def write(self, path: Path) -> Path:
        """Write the page. -> its path"""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.html())
        return path


def _card(drawn: Drawn) -> str:
    figures = "".join(_figure(drawn, panel) for panel in panels_of(drawn, SIDE))
    strips = _strips(drawn) if drawn.seen.left else ""
    head = f"<h3>{escape(drawn.method)}</h3><p>{escape(drawn.describe().partition(': ')[2])}</p>"
    return f'<article class="method" data-method="{escape(drawn.method)}">{head}{figures}{strips}</article>'


def _figure(drawn: Drawn, panel: Panel) -> str:
    facts = {"kind": panel.kind}
    if panel.layer is not None:
        facts["layer"] = str(panel.layer)
    if panel.tokens is not None:
        facts["kept"] = _listed(panel.tokens)
    told = "".join(f' data-{key}="{value}"' for key, value in facts.items())
    inside = f'<img src="{_address(panel.picture)}" alt="{escape(panel.caption)}">'
    if panel.kind == "clusters":
        tiles = [
            {"grid": tile.grid, "box": box, "weights": [[(n, float(f"{w:.3g}")) for n, w in held] for held in largest_weights(tile)]}
            for tile, box in zip(drawn.seen.tiles, panel.boxes, strict=True)
        ]  # fmt: skip
        inside += f'<div class="told">{HOVER}</div><script type="application/json">{json.dumps(tiles)}</script>'
    return f"<figure{told}><figcaption>{escape(panel.caption)}</figcaption>{inside}</figure>"


def _strips(drawn: Drawn) -> str:
    rows = []
    for layer, here in stages_of(drawn.seen):
        strip = f'<img src="{_address(paint_strip(here, max(1, len(here)), 1), lossless=True)}" alt="">'
        facts = f'data-layer="{layer}" data-here="{"".join("01"[one] for one in here)}"'
        rows.append(f"<tr {facts}><td>layer {layer}</td><td>{sum(here)}</td><td>{strip}</td></tr>")
    head = '<figcaption class="head">tokens in their order, dark where the layer still sees them</figcaption>'
    return f'{head}<table class="strips">{"".join(rows)}</table>'


def _listed(tokens: Sequence[Token]) -> str:
    return " ".join(f"{tile}:{unit}" for tile, unit in tokens)


def _address(picture: Image, lossless: bool = False) -> str:
    kind, content = ("png" if lossless else "webp"), io.BytesIO()
    picture.save(content, kind.upper(), **({} if lossless else {"quality": QUALITY}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
