"""Bare exercises in what every question about a scene needs: look-up, comparison, counting, naming by letter.

Nothing but the one skill can answer them, which is why each is learnt here within minutes; in the full mix alone it is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from playground.pocket.language import QUIET, Segment
from playground.pocket.questions import LETTERS, NO, YES
from playground.pocket.scenes import COLOURS, GRID, SHAPES, WORDS, place_name

DRILL_WORDS = (*SHAPES, *COLOURS, *WORDS, "left", "right", "top", "bottom", "center", "1", "2", "3", "4")


def drill(rng: random.Random, pairs: int, varied: bool) -> list[Segment]:
    """Bare look-up: random words paired once, then asked for again by their keys.

    Nothing but look-up can answer here, which is why it is learnt here within minutes: first on two pairs, then on more.

    Args:
        rng: source of every choice.
        pairs: the largest number of pairs.
        varied: several phrasings, values before keys too; otherwise one bare list, shuffled four times.
    """
    keys = rng.sample(DRILL_WORDS, rng.randint(2, pairs))
    told = [(key, rng.choice(DRILL_WORDS)) for key in keys]
    if varied:
        form = rng.choice(
            ("{k} {v}.", "{v} {k}.", "{k}: {v}.", "the {k} is {v}.", "a {v} {k} and", "the {v} at the {k}.")
        )
        asked = rng.choice(("the {k} is", "what is {k}?", "{k}:", "where is the {k}?"))
    else:
        form, asked = "{k} {v}.", "{k}"
    made = [Segment(" ".join(form.format(k=key, v=value) for key, value in told), QUIET)]
    for _ in range(2 if varied else 3):
        for key, value in rng.sample(told, len(told)):
            made += [Segment(" " + asked.format(k=key), 0.0), Segment(f" {value}", 1.0), Segment(".", QUIET)]
    return made


def _place_drill(rng: random.Random) -> list[Segment]:
    """Is the top left above the center?"""
    (a, b), (c, d) = rng.sample([(row, col) for row in range(GRID) for col in range(GRID)], 2)
    phrase, truth = rng.choice(
        (("to the left of", b < d), ("to the right of", b > d), ("above", a < c), ("below", a > c))
    )
    text = f"\nIs the {place_name(a, b)} {phrase} the {place_name(c, d)}?"
    return [Segment(text, QUIET), Segment(f" {YES if truth else NO}</s>", 1.0)]


def _sum_drill(rng: random.Random) -> list[Segment]:
    """Is 3 plus 1 equal to 4?"""
    a, b = rng.randint(1, 4), rng.randint(1, 3)
    truth = rng.random() < 0.5
    total = a + b if truth else a + b + rng.choice((-1, 1))
    return [Segment(f"\nIs {a} plus {b} equal to {total}?", QUIET), Segment(f" {YES if truth else NO}</s>", 1.0)]


def _pair_drill(rng: random.Random) -> list[Segment]:
    """Is the star red, where a list of pairs came before?"""
    keys = rng.sample(DRILL_WORDS, rng.randint(1, 4))
    told = [(key, rng.choice(DRILL_WORDS)) for key in keys]
    shape, asked = rng.choice(
        (
            ("{v} {k}.", "\nIs the {k} {v}?"),
            ("{v} {k}.", "\nIs there a {v} {k}?"),
            ("{k} {v}.", "\nIs the {k} at the {v}?"),
        )
    )
    made = [Segment(" ".join(shape.format(k=key, v=value) for key, value in told), QUIET)]
    for _ in range(8):
        key, value = rng.choice(told)
        truth = rng.random() < 0.5
        if not truth:
            near = [other for _, other in told if other != value]
            value = rng.choice(near if near and rng.random() < 0.7 else [w for w in DRILL_WORDS if w != value])
        made += [Segment(asked.format(k=key, v=value), QUIET), Segment(f" {YES if truth else NO}</s>", 1.0)]
    return made


def _presence_drill(rng: random.Random) -> list[Segment]:
    """Is there a star, where a list of words came before?"""
    line = rng.sample(DRILL_WORDS, rng.randint(1, 5))
    made = [Segment(" ".join(line) + ".", QUIET)]
    for _ in range(8):
        word = rng.choice(line) if rng.random() < 0.5 else rng.choice(DRILL_WORDS)
        made += [Segment(f"\nIs there a {word}?", QUIET), Segment(f" {YES if word in line else NO}</s>", 1.0)]
    return made


def _count_drill(rng: random.Random) -> list[Segment]:
    """How many stars are there, where a list of words came before?"""
    words = rng.sample(DRILL_WORDS, rng.randint(1, 5))
    line = [word for word in words for _ in range(rng.choice((1, 1, 2, 3)))]
    rng.shuffle(line)
    made = [Segment(" ".join(line) + ".", QUIET)]
    for _ in range(8):
        word = rng.choice(words) if rng.random() < 0.8 else rng.choice(DRILL_WORDS)
        made += [Segment(f"\nHow many {word} are there?", QUIET), Segment(f" {line.count(word)}</s>", 1.0)]
    return made


def _letter_drill(rng: random.Random) -> list[Segment]:
    """Which letter stands before this word?"""
    made: list[Segment] = []
    for _ in range(4):
        options = rng.sample(DRILL_WORDS, rng.randint(2, 5))
        lines = "".join(f"\n{letter}. {word}" for letter, word in zip(LETTERS, options, strict=False))
        right = rng.randrange(len(options))
        made += [Segment(f"\nWhich is {options[right]}?{lines}", QUIET), Segment(f" {LETTERS[right]}</s>", 1.0)]
    return made


def _repeated(exercise: Callable[[random.Random], list[Segment]]) -> Callable[[random.Random], list[Segment]]:
    """Eight of a kind in one document."""
    return lambda rng: [segment for _ in range(8) for segment in exercise(rng)]


JUDGEMENTS = (_pair_drill, _presence_drill, _count_drill, _letter_drill, _repeated(_place_drill), _repeated(_sum_drill))


def judgement_drill(rng: random.Random, forms: tuple[int, ...] = (0, 0, 1, 2, 2, 3, 3, 3, 4, 4, 5)) -> list[Segment]:
    """One exercise of `JUDGEMENTS`; the more often a number stands in `forms`, the likelier it is."""
    return JUDGEMENTS[rng.choice(forms)](rng)
