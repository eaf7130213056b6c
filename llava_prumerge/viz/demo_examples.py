"""Examples for the demo: images with a question each, drawn here or read from a folder."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.data.image_paths import SUFFIXES
from llava_prumerge.data.images import decode_image, read_image
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import QUESTION

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 24
"""Examples that are read from a folder."""
THUMBNAIL = 160  # pixels
LONGEST = 2000  # characters of a question


@dataclass(frozen=True)
class Example:
    """An image to ask about.

    Attributes:
        name: shown under it.
        question: what is asked.
        content: the image as a PNG, or its file.
    """

    name: str
    question: str
    content: bytes | Path = field(repr=False)

    def read(self) -> bytes:
        """The image as it is."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def image(self) -> Image:
        """The image in RGB."""
        return decode_image(io.BytesIO(self.read()), self.name)

    def thumbnail(self) -> bytes:
        """The image, small, as a JPEG."""
        small, file = self.image(), io.BytesIO()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(file, "JPEG")
        return file.getvalue()


def drawn_examples() -> list[Example]:
    """Three images that need no file: shapes, a chart and a sign."""
    shapes = Example("shapes", QUESTION, _png(_shapes()))
    chart = Example("chart", "Which bar is the highest?", _png(_chart()))
    return [shapes, chart, Example("sign", "What does the sign say?", _png(_sign()))]


def examples_of(folder: Path) -> list[Example]:
    """The images of a folder, by name; the question to NAME.jpg stands in NAME.txt beside it.

    Raises:
        InputError: there is no such folder, no image in it, an image that cannot be read, or too long a question.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of examples")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files or len(files) > MOST:
        raise InputError(
            f"{folder}: {len(files)} images ({', '.join(sorted(SUFFIXES))}); examples are 1 to {MOST} of them"
        )
    found = []
    for path in files:
        read_image(path)  # what is wrong is said at the start
        beside = path.with_suffix(".txt")
        try:
            question = beside.read_text("utf-8").strip() if beside.is_file() else QUESTION
        except UnicodeDecodeError as error:
            raise InputError(f"{beside}: a question is text in UTF-8") from error
        if not 0 < len(question) <= LONGEST:
            raise InputError(f"{beside}: a question has 1 to {LONGEST} characters, not {len(question)}")
        found.append(Example(path.stem, question, path))
    return found


def _png(picture: Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _shapes() -> Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (384, 288), (205, 209, 214))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((50, 90, 170, 210), fill=(206, 38, 38))
    pen.polygon([(280, 70), (350, 200), (210, 200)], fill=(42, 92, 190))
    return picture


def _chart() -> Image:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (384, 288), "white")
    pen, letters = ImageDraw.Draw(picture), ImageFont.load_default(20)
    for at, (height, colour) in enumerate(((90, "#0072b2"), (190, "#d55e00"), (140, "#009e73"), (60, "#cc79a7"))):
        left = 50 + 80 * at
        pen.rectangle((left, 240 - height, left + 50, 240), fill=colour)
        pen.text((left + 25, 246), "ABCD"[at], "black", letters, "ma")
    pen.line((30, 240, 360, 240), "black", 2)
    return picture


def _sign() -> Image:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (384, 288), (140, 180, 214))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 220, 384, 288), fill=(96, 128, 78))
    pen.rectangle((184, 150, 200, 262), fill=(90, 90, 90))
    pen.rounded_rectangle((62, 50, 322, 160), 12, fill=(18, 98, 62), outline="white", width=5)
    pen.text((192, 105), "OPEN DAILY", "white", ImageFont.load_default(38), "mm")
    return picture
