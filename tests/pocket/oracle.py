"""Answers pocket questions by reading them and looking at the scene's key: independent of the code that asks."""

from __future__ import annotations

import re

from playground.pocket.scenes import COLOURS, PLACES, SHAPES, WORDS_BY_KIND, Object, Scene, Word

CELLS = {place: (row, col) for row, places in enumerate(PLACES) for col, place in enumerate(places)}
PLURAL = {("crosses" if shape == "cross" else shape + "s"): shape for shape in SHAPES}
STRAIGHT = dict(circle=0, ring=0, heart=0, triangle=3, square=4, diamond=4, star=10, cross=12)
KIND = {word: kind for kind, words in WORDS_BY_KIND.items() for word in words}
MIXED = {
    "red yellow": "orange",
    "blue yellow": "green",
    "blue red": "purple",
    "red white": "pink",
    "black orange": "brown",
}


def parse(key: str) -> Scene:
    """A scene from its key."""
    objects, words = [], []
    for item in key.split():
        what, cell = item.split("@")
        row, col = map(int, cell)
        if "-" in what:
            colour, shape = what.split("-")
            objects.append(Object(shape, colour, row, col))
        else:
            words.append(Word(what, row, col))
    return Scene(tuple(objects), tuple(words))


def pick(scene: Scene, phrase: str) -> list[Object]:
    """The objects that a noun phrase fits: "star", "red shape", "red shapes", "stars", "red star", "shapes"."""
    found = list(scene.objects)
    for word in phrase.split():
        if word in COLOURS:
            found = [item for item in found if item.colour == word]
        elif word in SHAPES or word in PLURAL:
            found = [item for item in found if item.shape == PLURAL.get(word, word)]
        elif word not in ("shape", "shapes", "object"):
            raise ValueError(f"what is a {word!r}, in {phrase!r}?")
    return found


def the(scene: Scene, phrase: str) -> Object:
    """The one object that a phrase fits."""
    (item,) = pick(scene, phrase)
    return item


def at(scene: Scene, place: str) -> Object | Word | None:
    """What is in a named cell."""
    return scene.at(*CELLS[place])


def besides(a: Object, b: Object, how: str) -> bool:
    """Whether two objects are in a relation."""
    return {
        "to the left of": a.col < b.col,
        "to the right of": a.col > b.col,
        "above": a.row < b.row,
        "below": a.row > b.row,
    }[how]


RULES = [
    (r"Is there an? (.+) in the image\?", lambda s, x: bool(pick(s, x))),
    (r"Is the word (\w+) written in the image\?", lambda s, x: x in {word.text for word in s.words}),
    (r"Is the number of shapes plus (\d+) equal to (\d+)\?", lambda s, x, y: len(s.objects) + int(x) == int(y)),
    (r"Is the number of (.+) equal to (\d+)\?", lambda s, x, y: len(pick(s, x)) == int(y)),
    (r"Is the (.+) at the (.+)\?", lambda s, x, y: the(s, x).place == y),
    (
        r"Is the (.+) (to the left of|to the right of|above|below) the (.+)\?",
        lambda s, x, how, y: besides(the(s, x), the(s, y), how),
    ),
    (r"Is the (.+) round\?", lambda s, x: the(s, x).shape in ("circle", "ring")),
    (r"Is the (\w+) (\w+)\?", lambda s, x, y: the(s, x).colour == y),
    (r"Does the (.+) have (\d+) straight sides\?", lambda s, x, y: STRAIGHT[the(s, x).shape] == int(y)),
    (r"What color is the object at the (.+)\?", lambda s, x: at(s, x).colour),
    (r"What shape is the object at the (.+)\?", lambda s, x: at(s, x).shape),
    (r"What color is the (.+)\?", lambda s, x: the(s, x).colour),
    (r"What is the shape of the (.+) object\?", lambda s, x: the(s, x).shape),
    (r"Where is the (.+)\?", lambda s, x: the(s, x).place),
    (r"What is at the (.+)\?", lambda s, x: at(s, x).name),
    (r"How many (.+) are there in the image\?", lambda s, x: len(pick(s, x))),
    (r"What word is written in the image\?", lambda s: only(s).text),
    (r"What word is written at the (.+)\?", lambda s, x: at(s, x).text),
    (r"What kind of thing does the word in the image name\?", lambda s: KIND[only(s).text]),
    (r"How many straight sides does an? (\w+) have\?", lambda s, x: STRAIGHT[x]),
    (r"Which color do you get when you mix (\w+) and (\w+)\?", lambda s, x, y: MIXED[" ".join(sorted((x, y)))]),
    (r"What kind of thing is (\w+)\?", lambda s, x: KIND[x]),
    (r"What is (\d+) plus (\d+)\?", lambda s, x, y: int(x) + int(y)),
]


def only(scene: Scene) -> Word:
    """The one word of a scene."""
    (word,) = scene.words
    return word


def answer(text: str, scene: Scene | None) -> str:
    """The answer to a question, given as a prompt with or without instructions, OCR tokens and options."""
    lines = [line for line in text.replace("<image>", "").split("\n") if line]
    options = {line[0]: line[3:] for line in lines if re.match(r"[A-E]\. ", line)}
    (question,) = [line for line in lines if line.endswith("?")]
    if member := re.fullmatch(r"Which of these names an? (\w+)\?", question):
        (letter,) = [letter for letter, option in options.items() if KIND[option] == member[1]]
        return letter
    for pattern, rule in RULES:
        if found := re.fullmatch(pattern, question):
            said = rule(scene, *found.groups())
            said = ("No", "Yes")[said] if isinstance(said, bool) else str(said)
            if not options:
                return said
            (letter,) = [letter for letter, option in options.items() if option == said]
            return letter
    raise ValueError(f"no rule for {question!r}")
