"""Questions about pocket scenes, each with its answer and plausible wrong ones; shared by the language corpus and the benchmarks.

`ask(kind, scene, rng)` returns a `Question`, or None where the scene cannot carry that kind (no unique star, no word...).
Yes/no kinds are balanced by a coin, and a "No" is made from what the scene holds wherever that is possible, so that an answer
needs the binding of colour, shape and place and not just a bag of words. Questions about no image are in facts.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from playground.pocket.scenes import COLOURS, PLACES, SHAPES, WORDS, WORDS_BY_KIND, Object, Scene

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDE"
YES, NO = "Yes", "No"
ALL_PLACES = tuple(place for row in PLACES for place in row)
ALL_COLOURS = tuple(COLOURS)
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
SIDES = {"circle": 0, "square": 4, "triangle": 3, "star": 10, "heart": 0, "cross": 12, "diamond": 4, "ring": 0}
ROUND = ("circle", "ring")
KIND_OF_WORD = {word: kind for kind, words in WORDS_BY_KIND.items() for word in words}


@dataclass(frozen=True)
class Question:
    """A question, its answer, and wrong answers with the most tempting first.

    `text` carries no answering instruction: add SHORT_ANSWER, or LETTER_ANSWER where `letters` is true.
    """

    kind: str
    text: str
    answer: str
    wrong: tuple[str, ...] = ()
    letters: bool = False

    @property
    def prompt(self) -> str:
        """The text with LLaVA's instruction for this form of answer."""
        return self.text + (LETTER_ANSWER if self.letters else SHORT_ANSWER)


def article(phrase: str) -> str:
    """Puts "a" or "an" before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def tempting(right: str, present: list[str], everything: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Wrong answers: first those that are present in the scene for something else, then the rest, each shuffled."""
    near = sorted({name for name in present if name != right})
    far = [name for name in everything if name != right and name not in near]
    rng.shuffle(near)
    rng.shuffle(far)
    return (*near, *far)


def _yes_no(kind: str, text: str, truth: bool) -> Question:
    """A yes/no question."""
    return Question(kind, text, YES if truth else NO, (NO if truth else YES,))


def _unique(scene: Scene, attribute: str, rng: random.Random) -> Object | None:
    """An object that no other shares its `attribute` ("shape", "colour" or "name") with."""
    values = [getattr(item, attribute) for item in scene.objects]
    alone = [item for item in scene.objects if values.count(getattr(item, attribute)) == 1]
    return rng.choice(alone) if alone else None


def _handle(scene: Scene, rng: random.Random) -> tuple[str, Object] | None:
    """A phrase that picks out exactly one object ("star", "red shape" or "red star"), and the object."""
    ways = []
    for phrase, attribute in (("{0.shape}", "shape"), ("{0.colour} shape", "colour"), ("{0.name}", "name")):
        item = _unique(scene, attribute, rng)
        if item:
            ways.append((phrase.format(item), item))
    return rng.choice(ways) if ways else None


def exists_shape(scene: Scene, rng: random.Random) -> Question:
    """Is there a star?"""
    present = [item.shape for item in scene.objects]
    truth = rng.random() < 0.5
    shape = rng.choice(present) if truth else rng.choice([s for s in SHAPES if s not in present])
    return _yes_no("exists_shape", f"Is there {article(shape)} in the image?", truth)


def exists_colour(scene: Scene, rng: random.Random) -> Question:
    """Is there a red shape?"""
    present = [item.colour for item in scene.objects]
    truth = rng.random() < 0.5
    colour = rng.choice(present) if truth else rng.choice([c for c in ALL_COLOURS if c not in present])
    return _yes_no("exists_colour", f"Is there {article(colour)} shape in the image?", truth)


def exists_object(scene: Scene, rng: random.Random) -> Question:
    """Is there a red star? A "No" recombines the scene's own colours and shapes half of the time."""
    present = {(item.colour, item.shape) for item in scene.objects}
    truth = rng.random() < 0.5
    if truth:
        colour, shape = rng.choice(sorted(present))
    else:
        mixed = {(c, s) for c, _ in present for _, s in present} - present
        halves = {(c, s) for c, _ in present for s in SHAPES} | {(c, s) for c in ALL_COLOURS for _, s in present}
        colour, shape = rng.choice(sorted(mixed if mixed and rng.random() < 0.5 else halves - present))
    return _yes_no("exists_object", f"Is there {article(f'{colour} {shape}')} in the image?", truth)


def colour_of(scene: Scene, rng: random.Random) -> Question | None:
    """What color is the star?"""
    item = _unique(scene, "shape", rng)
    if item is None:
        return None
    wrong = tempting(item.colour, [other.colour for other in scene.objects], ALL_COLOURS, rng)
    return Question("colour_of", f"What color is the {item.shape}?", item.colour, wrong)


def shape_of(scene: Scene, rng: random.Random) -> Question | None:
    """What shape is red?"""
    item = _unique(scene, "colour", rng)
    if item is None:
        return None
    wrong = tempting(item.shape, [other.shape for other in scene.objects], SHAPES, rng)
    return Question("shape_of", f"What is the shape of the {item.colour} object?", item.shape, wrong)


def where_is(scene: Scene, rng: random.Random) -> Question | None:
    """Where is the star?"""
    handle = _handle(scene, rng)
    if handle is None:
        return None
    phrase, item = handle
    wrong = tempting(item.place, [other.place for other in (*scene.objects, *scene.words)], ALL_PLACES, rng)
    return Question("where_is", f"Where is the {phrase}?", item.place, wrong)


def what_at(scene: Scene, rng: random.Random) -> Question:
    """What is at the top left?"""
    item = rng.choice(scene.objects)
    others = [other.name for other in scene.objects]
    names = tuple(f"{colour} {shape}" for colour in ALL_COLOURS for shape in SHAPES)
    mixed = [f"{a.colour} {b.shape}" for a in scene.objects for b in scene.objects]
    wrong = tempting(item.name, others + mixed, names, rng)
    return Question("what_at", f"What is at the {item.place}?", item.name, wrong)


def colour_at(scene: Scene, rng: random.Random) -> Question:
    """What color is the object at the top left?"""
    item = rng.choice(scene.objects)
    wrong = tempting(item.colour, [other.colour for other in scene.objects], ALL_COLOURS, rng)
    return Question("colour_at", f"What color is the object at the {item.place}?", item.colour, wrong)


def shape_at(scene: Scene, rng: random.Random) -> Question:
    """What shape is the object at the top left?"""
    item = rng.choice(scene.objects)
    wrong = tempting(item.shape, [other.shape for other in scene.objects], SHAPES, rng)
    return Question("shape_at", f"What shape is the object at the {item.place}?", item.shape, wrong)


def count_question(kind: str, text: str, number: int, rng: random.Random) -> Question:
    """A counting question, with the neighbouring numbers as wrong answers first."""
    wrong = sorted((str(n) for n in range(6) if n != number), key=lambda n: (abs(int(n) - number), rng.random()))
    return Question(kind, text, str(number), tuple(wrong))


def count_all(scene: Scene, rng: random.Random) -> Question:
    """How many shapes are there?"""
    return count_question("count_all", "How many shapes are there in the image?", len(scene.objects), rng)


def count_colour(scene: Scene, rng: random.Random) -> Question:
    """How many red shapes are there? One in six asks for an absent colour."""
    present = [item.colour for item in scene.objects]
    colour = rng.choice(present if rng.random() < 5 / 6 else ALL_COLOURS)
    text = f"How many {colour} shapes are there in the image?"
    return count_question("count_colour", text, len(scene.of(colour=colour)), rng)


def count_shape(scene: Scene, rng: random.Random) -> Question:
    """How many stars are there? One in six asks for an absent shape."""
    present = [item.shape for item in scene.objects]
    shape = rng.choice(present if rng.random() < 5 / 6 else SHAPES)
    text = f"How many {PLURALS[shape]} are there in the image?"
    return count_question("count_shape", text, len(scene.of(shape=shape)), rng)


def word_any(scene: Scene, rng: random.Random) -> Question | None:
    """What word is written in the image? Only where there is one word."""
    if len(scene.words) != 1:
        return None
    text = scene.words[0].text
    return Question("word_any", "What word is written in the image?", text, tempting(text, [], WORDS, rng))


def word_at(scene: Scene, rng: random.Random) -> Question | None:
    """What word is at the top left?"""
    if not scene.words:
        return None
    item = rng.choice(scene.words)
    wrong = tempting(item.text, [other.text for other in scene.words], WORDS, rng)
    return Question("word_at", f"What word is written at the {item.place}?", item.text, wrong)


def exists_word(scene: Scene, rng: random.Random) -> Question | None:
    """Is the word "CAT" in the image?"""
    if not scene.words:
        return None
    present = [item.text for item in scene.words]
    truth = rng.random() < 0.5
    text = rng.choice(present) if truth else rng.choice([w for w in WORDS if w not in present])
    return _yes_no("exists_word", f"Is the word {text} written in the image?", truth)


def relation(scene: Scene, rng: random.Random) -> Question | None:
    """Is the star to the left of the circle? Only between cells that differ in that direction."""
    names = [item.name for item in scene.objects]
    lone = [item for item in scene.objects if names.count(item.name) == 1]
    if len(lone) < 2:
        return None
    a, b = rng.sample(lone, 2)
    shapes = [item.shape for item in scene.objects]
    first, second = (x.shape if shapes.count(x.shape) == 1 and rng.random() < 0.5 else x.name for x in (a, b))
    ways = [("to the left of", a.col < b.col), ("to the right of", a.col > b.col)] if a.col != b.col else []
    ways += [("above", a.row < b.row), ("below", a.row > b.row)] if a.row != b.row else []
    phrase, truth = rng.choice(ways)
    return _yes_no("relation", f"Is the {first} {phrase} the {second}?", truth)


def position(scene: Scene, rng: random.Random) -> Question | None:
    """Is the star at the top left? A "No" names another occupied cell half of the time."""
    handle = _handle(scene, rng)
    if handle is None:
        return None
    phrase, item = handle
    truth = rng.random() < 0.5
    place = item.place
    if not truth:
        taken = [other.place for other in (*scene.objects, *scene.words) if other.place != place]
        free = [other for other in ALL_PLACES if other != place]
        place = rng.choice(taken if taken and rng.random() < 0.5 else free)
    return _yes_no("position", f"Is the {phrase} at the {place}?", truth)


def is_colour(scene: Scene, rng: random.Random) -> Question | None:
    """Is the star red? A "No" names a colour of another object half of the time."""
    item = _unique(scene, "shape", rng)
    if item is None:
        return None
    truth = rng.random() < 0.5
    colour = item.colour
    if not truth:
        near = [other.colour for other in scene.objects if other.colour != colour]
        colour = rng.choice(near if near and rng.random() < 0.5 else [c for c in ALL_COLOURS if c != colour])
    return _yes_no("is_colour", f"Is the {item.shape} {colour}?", truth)


def arithmetic(scene: Scene, rng: random.Random) -> Question:
    """Is the number of shapes plus 1 equal to 3?"""
    number, add = len(scene.objects), rng.randint(1, 3)
    truth = rng.random() < 0.5
    total = number + add if truth else number + add + rng.choice((-1, 1))
    return _yes_no("arithmetic", f"Is the number of shapes plus {add} equal to {total}?", truth)


def commonsense(scene: Scene, rng: random.Random) -> Question | None:
    """Is the red shape round? Does it have 4 sides? A fact about a shape that must first be looked up."""
    item = _unique(scene, "colour", rng)
    if item is None:
        return None
    truth = rng.random() < 0.5
    if rng.random() < 0.3 and (item.shape in ROUND) == truth:
        return _yes_no("commonsense", f"Is the {item.colour} shape round?", truth)
    sides = SIDES[item.shape]
    if not truth:
        sides = rng.choice([n for n in sorted(set(SIDES.values())) if n != sides])
    return _yes_no("commonsense", f"Does the {item.colour} shape have {sides} straight sides?", truth)


def word_kind(scene: Scene, rng: random.Random) -> Question | None:
    """What kind of thing does the word in the image name?"""
    if len(scene.words) != 1:
        return None
    kind = KIND_OF_WORD[scene.words[0].text]
    text = "What kind of thing does the word in the image name?"
    return Question("word_kind", text, kind, tempting(kind, [], tuple(WORDS_BY_KIND), rng))


KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    function.__name__: function
    for function in (
        exists_shape, exists_colour, exists_object, colour_of, shape_of, where_is, what_at, colour_at, shape_at,
        count_all, count_colour, count_shape, word_any, word_at, exists_word, relation, position, is_colour,
        arithmetic, commonsense, word_kind,
    )
}  # fmt: skip
YES_NO_KINDS = ("exists_shape", "exists_colour", "exists_object", "exists_word", "relation", "position", "is_colour",
                "arithmetic", "commonsense")  # fmt: skip


def ask(kind: str, scene: Scene, rng: random.Random) -> Question | None:
    """Asks one question of a kind about a scene; None where the scene cannot carry it."""
    if kind not in KINDS:
        raise ValueError(f"question kind {kind!r} is not one of {sorted(KINDS)}")
    return KINDS[kind](scene, rng)


def with_options(question: Question, rng: random.Random, n: int = 4, hint: str = "") -> Question:
    """Turns a question into a multiple choice of n lettered options ("A. red"), answered by the letter.

    Args:
        question: one with at least n - 1 wrong answers.
        rng: places the right answer.
        n: 2 to 5 options.
        hint: put on a line of its own before the question, as ScienceQA and MMBench do.
    """
    if not 2 <= n <= min(len(LETTERS), len(question.wrong) + 1):
        raise ValueError(f"{n} options asked of {question.text!r}, which has {len(question.wrong)} wrong answers")
    options = [question.answer, *question.wrong[: n - 1]]
    rng.shuffle(options)
    lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
    text = "\n".join(([hint] if hint else []) + [question.text, *lines])
    letter = LETTERS[options.index(question.answer)]
    others = tuple(other for other in LETTERS[:n] if other != letter)
    return replace(question, text=text, answer=letter, wrong=others, letters=True)


def ocr_line(tokens: list[str]) -> str:
    """The line TextVQA's prompt adds after the question, e.g. "\\nReference OCR token: CAT, DOG"."""
    return "\nReference OCR token: " + ", ".join(tokens)
