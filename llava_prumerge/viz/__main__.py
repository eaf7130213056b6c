"""Draw what methods keep of images.

    python -m llava_prumerge.viz IMAGE... [--method METHOD ...] (--model PATH | --tower PATH) [--out DIR|FILE.html]
        [--question TEXT] [--plugin MODULE|FILE.py] [key=value ...]

Draws each image with each method: the image as the tower sees it (padded to a square, or each of its tiles) with kept
patches, the attention that patches receive, which patches went into which token where a method merges, and what is left
from each decoder layer on that drops tokens. METHOD is a name, file or block, and may be given several times; key=value
are the settings of a single one (budget=40). A checkpoint's own is drawn where --method is not given. --out names a
folder, which gets a PNG for each image and method, or one page.html with all of them side by side. An IMAGE may be a
video, a file or a folder with an image for each frame, for models that take videos (with --model).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.ground.command import Parser, at_least, command
from llava_prumerge.methods.labels import method_name
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import Block, read_settings, resolve, stored_reduction

if TYPE_CHECKING:
    from llava_prumerge.viz.panels import Drawn

PAGES = (".html", ".htm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpeg", ".mpg", ".flv")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line, images apart from settings."""
    parser = Parser("llava_prumerge.viz", __doc__, settings=None)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--method", action="append", help="name, file or block; repeatable; by default the checkpoint's own"
    )
    add_plugin_option(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a checkpoint of any served family")
    source.add_argument("--tower", help="a CLIP or SigLIP folder in transformers' layout")
    parser.add_argument("--question", "--prompt", help="for methods that read it, and pruners (with --model)")
    parser.add_argument("--frames", type=at_least(1), default=8, help="taken of a video (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/viz"), help="folder of the PNGs, or a page.html")
    given = parser.parse_args(words)
    given.settings = read_settings(given.settings)
    if given.method is None and given.tower:
        parser.error("--tower needs --method")
    if given.out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        parser.error(f"--out {given.out} is to be a folder, or a page that ends in {PAGES[0]}")
    if given.settings and len(given.method or [None]) > 1:
        parser.error(f"settings ({', '.join(given.settings)}) need one method; write METHOD:key=value for several")
    return given


def blocks_of(given: argparse.Namespace) -> list[Block | None]:
    """The reduction blocks that are asked for; None for the checkpoint's own.

    Raises:
        ReductionError: there is no such method, or it does not take a setting.
    """
    own = stored_reduction(given.model)
    return [resolve(method, given.settings, own=own) for method in given.method or [None]]


def drawings(given: argparse.Namespace) -> Iterator[tuple[Path, str, Drawn]]:
    """Each image with each method: its path, the method's name, and what is to be drawn."""
    from llava_prumerge.data.images import read_image  # with torch, which the help does not need
    from llava_prumerge.data.videos import read_video
    from llava_prumerge.viz.drawers import looking_by_model, looking_by_tower

    blocks = blocks_of(given)
    if given.model:
        look = looking_by_model(given.model, blocks, given.question)
    else:
        look = looking_by_tower(given.tower, [block or {} for block in blocks])
    for path in map(Path, given.images):
        own = stored_reduction(given.model)
        shown = read_video(path, given.frames) if is_video(path) else read_image(path)
        for block, drawn in zip(blocks, look(path.name, shown), strict=True):
            yield path, method_name(own if block is None else block), drawn


def is_video(path: Path) -> bool:
    """Whether an argument is read as a video: a folder of frames, or a file by its ending."""
    return path.is_dir() or path.suffix.lower() in VIDEOS


def draw(given: argparse.Namespace) -> list[Path]:
    """Draw, and print a line for each picture. -> the files written"""
    from llava_prumerge.viz.gallery import Gallery
    from llava_prumerge.viz.sheet import write_sheet

    if given.out.suffix.lower() in PAGES:
        gallery = Gallery()
        for path, _, drawn in drawings(given):
            gallery.add(drawn, str(path))
            print(f"{path}  {drawn.describe()}")
        return [gallery.write(given.out)]
    written: list[Path] = []
    for path, name, drawn in drawings(given):
        file = Path(given.out, f"{path.stem}_{name}.png")
        if file in written:  # of another folder, or of a method with other settings
            file = file.with_stem(f"{file.stem}_{len(written)}")
        written.append(write_sheet(drawn, file))
        print(f"{file}  {drawn.describe()}")
    return written


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    logging.basicConfig(level=logging.WARNING)
    draw(parse(words))


if __name__ == "__main__":
    sys.exit(main())
