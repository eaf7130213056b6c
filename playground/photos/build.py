"""Makes the photographs' data from seeds: `python playground/photos/build.py [photos=FOLDER] [images=N] [scale=X] [out=FOLDER]`.

The conversations to train on and two sets of the six benchmarks in their official formats: `eval`, which is reported, and
`dev/eval`, for choices. They share neither scenes nor photographs with each other or with what is trained on.
Without a folder of photographs the scenes are painted on generated textures. What is up to date is not made again.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from playground.photos import backgrounds, paint  # noqa: E402
from playground.photos.backgrounds import SIDE  # noqa: E402
from playground.photos.paint import Painter  # noqa: E402
from playground.pocket import benchmarks, records, store  # noqa: E402
from playground.pocket.build import check_values, parse_values  # noqa: E402
from playground.pocket.world import World  # noqa: E402

KNOWN = {"photos": Path, "images": int, "scale": float, "out": Path}
IMAGES = 2800
SETS = {".": "test", "dev": "validation"}
"""Folder -> split of its scenes and its photographs; the benchmarks lie in `eval` below each."""
SHARES = {"vqav2": 0.92, "pope": 0.78, "textvqa": 0.25, "mme": 0.33, "mmbench": 0.27, "sqa": 0.15}
"""Of the pocket benchmarks' sizes: about as many images for each, fewer where the images of a question carry many more."""
PER_IMAGE = 12


def world(folder: Path | None, split: str) -> World:
    """How the scenes of a split become pictures."""
    ground = backgrounds.backgrounds(folder, split)
    painter = Painter(ground)
    settings = {"painted_on": ground.told(), "painter": store.digest(backgrounds, paint), "split": split}
    settings |= {"shares": SHARES, "per_image": PER_IMAGE}
    return World(painter, SIDE, split, SHARES, PER_IMAGE, painter.regions, settings)


def build(out: Path, folder: Path | None = None, images: int = IMAGES, scale: float = 1.0) -> None:
    """Write all of it.

    Args:
        out: the folder.
        folder: of photographs; None for textures.
        images: records to train on; one in seventeen has no image.
        scale: of the benchmarks.
    """
    records.build(out, stage1=0, stage2=images, world=world(folder, "train"))
    for name, split in SETS.items():
        benchmarks.build(out / name, scale=scale, world=world(folder, split))


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.photos.build", __doc__, settings=None)
    values = parse_values(parser.parse_args(words).settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    check_values(values, KNOWN)
    if not values.get("scale", 1.0) > 0:
        raise InputError(f"scale={values['scale']!r} is not above 0")
    folder = Path(values["photos"]).expanduser().resolve() if values.get("photos") else None
    build(Path(values.get("out", HERE / "data")), folder, values.get("images", IMAGES), values.get("scale", 1.0))


if __name__ == "__main__":
    sys.exit(main())
