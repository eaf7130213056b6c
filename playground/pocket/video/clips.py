"""Clips of the pocket world: four frames of one to three shapes, one of which moves, and one of which may come later.

A shape moves by whole cells of the grid, in a straight line. Train and test are disjoint by construction: the split of a clip
is a hash of what it shows, not of the seed that drew it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from playground.pocket.scenes import COLOURS, GRID, SHAPES, Object, Scene, place_name

FRAMES = 4
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "top": (-1, 0), "bottom": (1, 0)}
"""Where a shape may move to, and how its row and column change."""
LATER = 0.5
"""Share of the clips with several shapes in which one comes later."""


@dataclass(frozen=True, order=True)
class Actor:
    """One shape of a clip.

    Attributes:
        shape, colour: of it.
        row, col: cell in the first frame it is seen in.
        direction: where it moves to, "" for a shape that rests.
        steps: cells that it moves by.
        since: the first frame it is seen in.
    """

    shape: str
    colour: str
    row: int
    col: int
    direction: str = ""
    steps: int = 0
    since: int = 0

    @property
    def name(self) -> str:
        """Such as "red star"."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Where it is at first."""
        return place_name(self.row, self.col)

    def at(self, frame: int) -> tuple[int, int]:
        """Its cell in a frame: it sets out from the first and arrives in the last."""
        if not self.direction:
            return self.row, self.col
        done = round(self.steps * frame / (FRAMES - 1))
        down, right = DIRECTIONS[self.direction]
        return self.row + down * done, self.col + right * done

    def cells(self) -> set[tuple[int, int]]:
        """All cells that it is ever in."""
        return {self.at(frame) for frame in range(FRAMES)}


@dataclass(frozen=True)
class Clip:
    """What a clip shows; the one that moves comes first."""

    actors: tuple[Actor, ...]

    @property
    def mover(self) -> Actor:
        """The shape that moves."""
        return self.actors[0]

    @property
    def late(self) -> Actor | None:
        """The shape that comes later, if one does."""
        return next((actor for actor in self.actors if actor.since), None)

    @property
    def key(self) -> str:
        """Equal for equal content."""
        return " ".join(
            f"{a.colour}-{a.shape}@{a.row}{a.col}{a.direction}{a.steps}+{a.since}" for a in sorted(self.actors)
        )

    def frame(self, number: int) -> Scene:
        """What is seen in one frame."""
        seen = [actor for actor in self.actors if actor.since <= number]
        return Scene(tuple(Object(actor.shape, actor.colour, *actor.at(number)) for actor in seen))

    def frames(self) -> list[Scene]:
        """All of them, in order."""
        return [self.frame(number) for number in range(FRAMES)]


def sample_clip(rng: random.Random) -> Clip:
    """Draws a clip; colours differ between its shapes, and so do shapes, so that each is named by either."""
    count = rng.randint(1, 3)
    colours, shapes = rng.sample(tuple(COLOURS), count), rng.sample(SHAPES, count)
    direction, steps = rng.choice(tuple(DIRECTIONS)), rng.randint(1, GRID - 1)
    down, right = (part * steps for part in DIRECTIONS[direction])
    row = rng.randint(max(0, -down), GRID - 1 - max(0, down))
    col = rng.randint(max(0, -right), GRID - 1 - max(0, right))
    mover = Actor(shapes[0], colours[0], row, col, direction, steps)
    free = [(r, c) for r in range(GRID) for c in range(GRID) if (r, c) not in mover.cells()]
    cells = rng.sample(free, count - 1)
    others = [Actor(shape, colour, *cell) for shape, colour, cell in zip(shapes[1:], colours[1:], cells, strict=True)]
    if others and rng.random() < LATER:
        first = others[0]
        others[0] = Actor(first.shape, first.colour, first.row, first.col, since=rng.randint(1, FRAMES - 2))
    return Clip((mover, *others))


def split_of(clip: Clip) -> str:
    """80% train, 20% test, by a hash of what it shows."""
    bucket = int.from_bytes(hashlib.sha256(clip.key.encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else "test"


def clips(split: str, seed: str, count: int) -> Iterator[Clip]:
    """Different clips of a split, the same ones for the same arguments."""
    rng, seen = random.Random(f"clips/{split}/{seed}"), set()
    while len(seen) < count:
        clip = sample_clip(rng)
        if split_of(clip) == split and clip.key not in seen:
            seen.add(clip.key)
            yield clip
