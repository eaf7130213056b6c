"""Questions about clips, each with its answer and ActivityNet-QA's number of its type.

`TEMPORAL` kinds cannot be answered from one frame. A kind returns None where a clip cannot carry it. Yes and no, and the four directions,
are asked for equally often by the way clips are drawn and by a coin.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from playground.pocket.questions import NO, YES, article
from playground.pocket.scenes import COLOURS, SHAPES
from playground.pocket.video.clips import Actor, Clip

MOTION, SPATIAL, TIME, YES_NO, COLOUR, OBJECT, PLACE, NUMBER = range(8)


@dataclass(frozen=True)
class Asked:
    """A question, its answer, its kind and the number of its type."""

    kind: str
    type: int
    text: str
    answer: str


def handle(actor: Actor, rng: random.Random) -> str:
    """Words that pick out a shape of a clip: in it neither colours nor shapes stand twice."""
    return rng.choice((actor.shape, f"{actor.colour} shape", actor.name))


def which_moves(clip: Clip, rng: random.Random) -> Asked | None:
    """Which shape moves?"""
    return Asked("which_moves", OBJECT, "Which shape moves?", clip.mover.name) if len(clip.actors) > 1 else None


def where_to(clip: Clip, rng: random.Random) -> Asked:
    """Where does the star move?"""
    return Asked("where_to", MOTION, f"Where does the {handle(clip.mover, rng)} move?", clip.mover.direction)


def does_move(clip: Clip, rng: random.Random) -> Asked | None:
    """Does the star move? Of a clip with several shapes."""
    if len(clip.actors) == 1:
        return None
    truth = rng.random() < 0.5
    actor = clip.mover if truth else rng.choice(clip.actors[1:])
    return Asked("does_move", YES_NO, f"Does the {handle(actor, rng)} move?", YES if truth else NO)


def comes_first(clip: Clip, rng: random.Random) -> Asked | None:
    """What is shown first, the star or the ring?"""
    late = clip.late
    if late is None:
        return None
    early = rng.choice([actor for actor in clip.actors if not actor.since])
    pair = [early, late]
    rng.shuffle(pair)
    text = f"What is shown first, the {pair[0].name} or the {pair[1].name}?"
    return Asked("comes_first", TIME, text, early.name)


def comes_later(clip: Clip, rng: random.Random) -> Asked | None:
    """Which shape is shown when others are there already?"""
    return (
        None if clip.late is None else Asked("comes_later", TIME, "Which shape is not shown at first?", clip.late.name)
    )


def starts_at(clip: Clip, rng: random.Random) -> Asked:
    """Where is the star at first? The one that moves is elsewhere at the end."""
    mover = clip.mover
    return Asked("starts_at", PLACE, f"Where is the {handle(mover, rng)} at first?", mover.place)


def colour_of(clip: Clip, rng: random.Random) -> Asked:
    """What color is the star?"""
    actor = rng.choice(clip.actors)
    return Asked("colour_of", COLOUR, f"What color is the {actor.shape}?", actor.colour)


def shape_of(clip: Clip, rng: random.Random) -> Asked:
    """What is the shape of the red object?"""
    actor = rng.choice(clip.actors)
    return Asked("shape_of", OBJECT, f"What is the shape of the {actor.colour} object?", actor.shape)


def where_is(clip: Clip, rng: random.Random) -> Asked | None:
    """Where is the star, which rests?"""
    if len(clip.actors) == 1:
        return None
    actor = rng.choice(clip.actors[1:])
    return Asked("where_is", SPATIAL, f"Where is the {handle(actor, rng)}?", actor.place)


def is_there(clip: Clip, rng: random.Random) -> Asked:
    """Is there a red star? A "No" has the colour or the shape of one that is there, half of the time both of two."""
    truth = rng.random() < 0.5
    actor = rng.choice(clip.actors)
    colour, shape = actor.colour, actor.shape
    if not truth:
        others = [other for other in clip.actors if other is not actor]
        if others and rng.random() < 0.5:
            shape = rng.choice(others).shape
        elif rng.random() < 0.5:
            colour = rng.choice([one for one in COLOURS if one != colour])
        else:
            shape = rng.choice([one for one in SHAPES if one != shape])
    return Asked("is_there", YES_NO, f"Is there {article(f'{colour} {shape}')}?", YES if truth else NO)


def how_many(clip: Clip, rng: random.Random) -> Asked:
    """How many shapes are shown?"""
    return Asked("how_many", NUMBER, "How many shapes are shown?", str(len(clip.actors)))


Kind = Callable[[Clip, random.Random], Asked | None]
TEMPORAL: dict[str, Kind] = {
    kind.__name__: kind for kind in (which_moves, where_to, does_move, comes_first, comes_later, starts_at)
}
STATIC: dict[str, Kind] = {kind.__name__: kind for kind in (colour_of, shape_of, where_is, is_there, how_many)}
KINDS = {**TEMPORAL, **STATIC}


def ask(kinds: dict[str, Kind], clip: Clip, rng: random.Random, count: int) -> list[Asked]:
    """Up to so many questions of different kinds about a clip."""
    made = (KINDS[name](clip, rng) for name in rng.sample(sorted(kinds), len(kinds)))
    return [asked for asked in made if asked is not None][:count]
