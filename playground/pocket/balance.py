"""Asks questions in such proportions that a question's words do not help to guess its answer.

Records and benchmarks draw from here. Within every kind of question each answer is asked for equally often, and where
the words of a yes/no question hint at the answer ("4 straight sides" is a safer guess than "12"), yes and no are
equally frequent for each such hint.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from playground.pocket.questions import (
    ALL_COLOURS,
    ALL_PLACES,
    KINDS,
    NO,
    PLURALS,
    YES,
    YES_NO_KINDS,
    Question,
    with_options,
)
from playground.pocket.scenes import SHAPES, WORDS, WORDS_BY_KIND, Scene

NUMBER = re.compile(r"\d+")


def is_count(scene: Scene, rng: random.Random) -> Question:
    """Is the number of shapes equal to 3? Of all shapes, of a colour or of a kind; a "No" names another number."""
    item = rng.choice(scene.objects)
    phrase, number, most = rng.choice(
        (
            ("shapes", len(scene.objects), 4),
            (f"{item.colour} shapes", len(scene.of(colour=item.colour)), 3),
            (PLURALS[item.shape], len(scene.of(shape=item.shape)), 3),
        )
    )
    truth = rng.random() < 0.5
    asked = number if truth else rng.choice([n for n in range(1, most + 1) if n != number])
    text = f"Is the number of {phrase} equal to {asked}?"
    return Question("is_count", text, YES if truth else NO, (NO if truth else YES,))


ASKS: dict[str, Callable[[Scene, random.Random], Question | None]] = {**KINDS, "is_count": is_count}
YES_OR_NO = frozenset((*YES_NO_KINDS, "is_count"))
ANSWERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("colour_of", "colour_at"), ALL_COLOURS),
    **dict.fromkeys(("shape_of", "shape_at"), SHAPES),
    "where_is": ALL_PLACES,
    "count_all": ("1", "2", "3", "4"),
    **dict.fromkeys(("count_colour", "count_shape"), ("0", "1", "2", "3")),
    **dict.fromkeys(("word_any", "word_at"), WORDS),
    "word_kind": tuple(WORDS_BY_KIND),
    **dict.fromkeys(YES_OR_NO, (YES, NO)),
}
"""The answers to be asked for equally often; a kind that is missing (what_at) has too many to need it."""


def hint_of(question: Question) -> str:
    """What the words of a yes/no question give away: the number they imply, or "round"; "" for most."""
    numbers = [int(number) for number in NUMBER.findall(question.text)]
    if question.kind == "arithmetic":
        return str(numbers[1] - numbers[0])  # the number of shapes that makes it true
    if question.kind == "commonsense":
        return str(numbers[0]) if numbers else "round"
    if question.kind == "is_count":
        return f"{'all' if 'of shapes' in question.text else 'some'} {numbers[0]}"
    return ""


class Balance:
    """Keeps count of what was asked, and admits only what keeps the answers of each kind equally frequent.

    Args:
        weights: how often each kind is wanted, relative to the others.
        slack: by how many full rounds of its answers a kind may be ahead; 1 is as even as it gets.
    """

    def __init__(self, weights: Mapping[str, float] | Iterable[str], slack: float = 1.0) -> None:
        self.weights = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0)
        if unknown := sorted(set(self.weights) - set(ASKS)):
            raise ValueError(f"question kinds {unknown} are not among {sorted(ASKS)}")
        self.slack = slack
        self.asked: Counter[str] = Counter()
        self.answered: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def admits(self, question: Question) -> bool:
        """Whether a question's answer was not asked for more often than the kind's other answers."""
        answers = ANSWERS.get(question.kind)
        if answers is None:
            return True
        if question.answer not in answers:
            return False
        counts = self.answered[question.kind, hint_of(question)]
        return counts[question.answer] * len(answers) < counts.total() + self.slack * len(answers)

    def add(self, question: Question) -> None:
        """Counts a question as asked."""
        self.asked[question.kind] += 1
        self.answered[question.kind, hint_of(question)][question.answer] += 1

    def draw(self, scene: Scene, rng: random.Random, n: int, tries: int = 4) -> list[Question]:
        """Asks up to n questions of different kinds about a scene, of the kinds asked least so far; in random order."""
        drawn: list[Question] = []
        for kind in sorted(self.weights, key=lambda kind: (self.asked[kind] / self.weights[kind], rng.random())):
            if len(drawn) == n:
                break
            for _ in range(tries):
                question = ASKS[kind](scene, rng)
                if question is None:
                    break
                if self.admits(question):
                    self.add(question)
                    drawn.append(question)
                    break
        rng.shuffle(drawn)
        return drawn


def give_options(question: Question, rng: random.Random, n: int, letter: str | None = None, hint: str = "") -> Question:
    """Turns a question into a multiple choice whose right letter, if given, is fixed.

    Numbers are offered from all possible ones: of the nearest, as a count's wrong answers come, the middle is right.
    """
    if question.kind in ANSWERS and question.answer.isdigit():
        others = [number for number in ANSWERS[question.kind] if number != question.answer]
        question = replace(question, wrong=tuple(rng.sample(others, len(others))))
    while True:
        lettered = with_options(question, rng, n, hint)
        if letter in (None, lettered.answer):
            return lettered


def option_lines(lettered: Question) -> tuple[str, list[str]]:
    """The text before the options of a lettered question, and the options without their letters."""
    lines = lettered.text.split("\n")
    count = len(lettered.wrong) + 1
    return "\n".join(lines[:-count]), [line[3:] for line in lines[-count:]]
