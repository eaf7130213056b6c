"""Draw what a method keeps of images.

    python -m llava_prumerge.viz IMAGE... [--method METHOD] (--model PATH | --tower PATH) [--out DIR] [--prompt TEXT]
        [--plugin MODULE|FILE.py] [key=value ...]

Writes one PNG per image: the image as the tower sees it (padded to a square, or each of its tiles) with kept patches, and the
attention that patches receive. METHOD is a vision reducer by name,
file or block; key=value are its settings (budget=40). A checkpoint's own is drawn where --method is not given.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import read_settings, resolve, resolve_part, stored_reduction

BATCH = 8


def parse(words: list[str]) -> argparse.Namespace:
    """The command line, images apart from settings."""
    parser = Parser("llava_prumerge.viz", __doc__, settings=None)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--method", help="a vision reducer: name, file or block; by default the checkpoint's own")
    add_plugin_option(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a checkpoint of any served family")
    source.add_argument("--tower", help="a CLIP folder in transformers' layout")
    parser.add_argument("--prompt", help="the question, for methods that read it (with --model)")
    parser.add_argument("--out", default="runs/viz", help="folder of the PNGs")
    given = parser.parse_args(words)
    given.settings = read_settings(given.settings)
    if given.method is None and given.tower:
        parser.error("--tower needs --method")
    return given


def reducer_of(given: argparse.Namespace) -> dict[str, Any] | None:
    """The block of the vision reducer that is asked for; None for the checkpoint's own.

    Raises:
        ReductionError: the method has none.
    """
    block = resolve(given.method, given.settings, own=stored_reduction(given.model))
    if block is None:
        return None
    return block["vision"] if "vision" in block else resolve_part(block, "vision")


def draw(given: argparse.Namespace) -> list[Path]:
    """Draw, and print a line for each picture. -> the files written"""
    from llava_prumerge.data.images import read_image  # with torch, which the help does not need
    from llava_prumerge.viz.drawers import drawer_of_model, drawer_of_tower

    block = reducer_of(given)
    if given.model:
        name, drawn = drawer_of_model(given.model, block, given.prompt)
    else:
        name, drawn = drawer_of_tower(given.tower, block)
    written: list[Path] = []
    for start in range(0, len(given.images), BATCH):
        paths = [Path(image) for image in given.images[start : start + BATCH]]

        def target(at: int, paths: list[Path] = paths) -> Path:
            file = Path(given.out, f"{paths[at].stem}_{name}.png")
            return file.with_stem(f"{file.stem}_{len(written)}") if file in written else file  # of another folder

        for file, line in drawn([read_image(path) for path in paths], target):
            written.append(file)
            print(f"{file}  {line}")
    return written


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    logging.basicConfig(level=logging.WARNING)
    draw(parse(words))


if __name__ == "__main__":
    sys.exit(main())
