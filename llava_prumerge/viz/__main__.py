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
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.viz.overlay import describe, write_overlay
from llava_prumerge.viz.selection import viewer_of_model, viewer_of_tower

BATCH = 8


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, images apart from settings."""
    parser = argparse.ArgumentParser(
        prog="python -m llava_prumerge.viz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="+", metavar="IMAGE | key=value")
    parser.add_argument("--method", help="a vision reducer; by default the checkpoint's own")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a LLaVA checkpoint")
    source.add_argument("--tower", help="a CLIP folder in transformers' layout")
    parser.add_argument("--prompt", help="the question, for methods that read it (with --model)")
    parser.add_argument("--out", default="runs/viz", help="folder of the PNGs")
    given = parser.parse_intermixed_args(arguments)
    given.images = [item for item in given.items if "=" not in item or Path(item).exists()]
    given.settings = dict(item.split("=", 1) for item in given.items if item not in given.images)
    given.settings = {key: yaml.safe_load(value) for key, value in given.settings.items()}
    if not given.images:
        parser.error("name at least one image")
    if given.method is None and (given.tower or given.settings):
        parser.error("--tower and settings need --method")
    return given


def main(arguments: list[str] | None = None) -> list[Path]:
    """Run the command. -> the files written"""
    given = parse(arguments)
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


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        main()
    except (ReductionError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
