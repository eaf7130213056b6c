"""Draw what a method keeps of images.

    python -m llava_prumerge.viz IMAGE... [--method NAME] (--model PATH | --tower PATH) [--out DIR] [--prompt TEXT] [key=value ...]

Writes one PNG per image: the padded image with kept patches, and the class attention. key=value are the method's settings
(budget=40). A checkpoint's own method is drawn where --method is not given.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import yaml

from llava_prumerge.data.images import read_image
from llava_prumerge.ground.command import Parser, command, pairs
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.viz.overlay import describe, write_overlay
from llava_prumerge.viz.selection import viewer_of_model, viewer_of_tower

BATCH = 8


def parse(words: list[str]) -> argparse.Namespace:
    """The command line, images apart from settings."""
    parser = Parser("llava_prumerge.viz", __doc__, settings=None)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--method", help="a vision reducer; by default the checkpoint's own")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a LLaVA checkpoint")
    source.add_argument("--tower", help="a CLIP folder in transformers' layout")
    parser.add_argument("--prompt", help="the question, for methods that read it (with --model)")
    parser.add_argument("--out", default="runs/viz", help="folder of the PNGs")
    given = parser.parse_args(words)
    try:
        given.settings = {key: yaml.safe_load(value) for key, value in pairs(given.settings).items()}
    except yaml.YAMLError:
        parser.error(f"{' '.join(given.settings)}: not YAML")
    if given.method is None and (given.tower or given.settings):
        parser.error("--tower and settings need --method")
    return given


def draw(given: argparse.Namespace) -> list[Path]:
    """Draw, and print a line for each picture. -> the files written"""
    block = None if given.method is None else {"name": given.method, **given.settings}
    if given.model:
        viewer = viewer_of_model(given.model, block, given.prompt)
    else:
        viewer = viewer_of_tower(given.tower, build_reducer(block))
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
