"""Draw what a method keeps of images.

    python -m llava_prumerge.viz IMAGE... [--method METHOD] (--model PATH | --tower PATH) [--out DIR] [--prompt TEXT]
        [--plugin MODULE|FILE.py] [key=value ...]

Writes one PNG per image: the padded image with kept patches, and the class attention. METHOD is a vision reducer by name,
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
    source.add_argument("--model", help="a LLaVA checkpoint")
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
    from llava_prumerge.methods.registry import build_reducer
    from llava_prumerge.viz.overlay import describe, write_overlay
    from llava_prumerge.viz.selection import viewer_of_model, viewer_of_tower

    reducer = reducer_of(given)
    if given.model:
        viewer = viewer_of_model(given.model, reducer, given.prompt)
    else:
        viewer = viewer_of_tower(given.tower, build_reducer(reducer))
    written: list[Path] = []
    for start in range(0, len(given.images), BATCH):
        paths = [Path(name) for name in given.images[start : start + BATCH]]
        images = [read_image(path) for path in paths]
        for path, selection in zip(paths, viewer.look(images)):
            name = viewer.reducer.name
            target = Path(given.out, f"{path.stem}_{name}.png")
            if target in written:  # same name in two folders
                target = target.with_stem(f"{target.stem}_{len(written)}")
            written.append(write_overlay(selection, name, target))
            print(f"{written[-1]}  {describe(selection, name)}")
    return written


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    logging.basicConfig(level=logging.WARNING)
    draw(parse(words))


if __name__ == "__main__":
    sys.exit(main())
