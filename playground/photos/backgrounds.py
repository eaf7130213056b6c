"""What scenes are painted on: photographs of a folder that a person names, or textures made from a seed where there is none.

Photographs are split by a hash of their names, so that no photograph that a benchmark shows was seen in training.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from llava_prumerge.data.images import load_image
from llava_prumerge.ground.errors import InputError

SIDE = 336
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp"))
PADDING = (124, 116, 104)
"""ImageNet's mean colour, which DINOv2's normalisation takes to zero."""
SPLITS = ("train", "validation", "test")
HELD = 1 / 8
"""Share of the photographs for validation, and again for test."""


def split_of_name(name: str) -> str:
    """The one split a photograph belongs to, by a hash of its file name."""
    place = int.from_bytes(hashlib.sha256(Path(name).name.encode()).digest()[:4], "big") / 2**32
    return "test" if place < HELD else "validation" if place < 2 * HELD else "train"


def fit(photograph: Image.Image) -> Image.Image:
    """A photograph in a square of `SIDE` pixels: shrunk to fit where it is larger, padded to the square."""
    photograph = photograph.convert("RGB")
    scale = SIDE / max(photograph.size)
    size = tuple(max(1, round(side * scale)) for side in photograph.size)
    if photograph.size != size:
        photograph = photograph.resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE), PADDING)
    square.paste(photograph, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


@dataclass(frozen=True)
class Photographs:
    """The photographs of one split of a folder and all folders below it.

    Args:
        folder: named by a person.
        split: "train", "validation" or "test".
    """

    folder: Path
    split: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Paths below the folder, in order.

        Raises:
            InputError: the folder is not there, or holds too few photographs.
        """
        if not self.folder.is_dir():
            raise InputError(f"PHOTOS={self.folder}: there is no such folder")
        found = (path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        names = tuple(sorted(str(path.relative_to(self.folder)) for path in found))
        own = tuple(name for name in names if split_of_name(name) == self.split)
        if not own:
            raise InputError(
                f"PHOTOS={self.folder}: {len(names)} photographs, none for {self.split}; name a folder of more"
            )
        return own

    def draw(self, rng: random.Random) -> Image.Image:
        """One of them, [SIDE, SIDE] RGB."""
        return fit(load_image(self.folder, rng.choice(self.names)))

    def told(self) -> str:
        """What decides the pictures, for a manifest."""
        digest = hashlib.sha256("\0".join(self.names).encode()).hexdigest()[:16]
        return f"{len(self.names)} photographs, {digest}"


@dataclass(frozen=True)
class Textures:
    """Clouds of colour with stripes and blotches on them, from a seed: as busy as a photograph, and showing nothing."""

    split: str

    def draw(self, rng: random.Random) -> Image.Image:
        """One of them, [SIDE, SIDE] RGB."""
        numbers = np.random.default_rng(rng.getrandbits(64))
        colours = numbers.uniform(30, 225, (2, 3))
        share = clouds(numbers)[..., None]
        ground = colours[0] * share + colours[1] * (1 - share)
        angle, period = numbers.uniform(0, np.pi), numbers.uniform(8, 60)
        y, x = np.mgrid[:SIDE, :SIDE]
        stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        ground += numbers.uniform(0, 25) * (stripes * (clouds(numbers) > 0.5))[..., None]
        ground += numbers.normal(0, numbers.uniform(2, 14), (SIDE, SIDE, 1))
        blotches = clouds(numbers, first=8) > 0.68
        ground[blotches] = 0.5 * ground[blotches] + 0.5 * numbers.uniform(0, 255, 3)
        return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))

    def told(self) -> str:
        """What decides the pictures, for a manifest."""
        return "textures"


def clouds(numbers: np.random.Generator, first: int = 3) -> np.ndarray:
    """Smooth noise between 0 and 1, [SIDE, SIDE]: octaves of random grids, each twice as fine and half as strong."""
    total = np.zeros((SIDE, SIDE))
    for octave in range(5):
        grid = numbers.uniform(0, 1, (first * 2**octave,) * 2).astype(np.float32)
        fine = Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        total += np.asarray(fine) / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def backgrounds(folder: Path | None, split: str) -> Photographs | Textures:
    """The photographs of a folder, or textures where there is none."""
    return Textures(split) if folder is None else Photographs(folder, split)
