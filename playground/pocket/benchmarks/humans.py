"""Ten annotators who mostly agree: VQAv2 and TextVQA compare an answer with what ten people wrote."""

from __future__ import annotations

import random

from playground.pocket.questions import NO, YES, Question
from playground.pocket.records import misread
from playground.pocket.scenes import COLOURS, SHAPES, WORDS

ANNOTATORS = 10
# How many of the ten wrote the right answer, with its chance. There is only one wrong answer to a yes/no question, and
# each who gives it pays for a blind guess, so fewer do.
AGREEING = {10: 0.35, 9: 0.25, 8: 0.2, 7: 0.1, 6: 0.06, 5: 0.04}
AGREEING_YES_NO = {10: 0.75, 9: 0.25}
COLOUR_NAMES = {
    "red": ("dark red", "crimson"),
    "orange": ("light orange", "yellow"),
    "yellow": ("gold", "light yellow"),
    "green": ("dark green", "teal"),
    "blue": ("dark blue", "navy"),
    "purple": ("violet", "dark purple"),
    "pink": ("light pink", "rose"),
    "brown": ("dark brown", "tan"),
}
SHAPE_NAMES = {
    "circle": ("ball", "dot", "round"),
    "square": ("box", "rectangle"),
    "triangle": ("pyramid", "triangular"),
    "star": ("stars", "5 pointed star"),
    "heart": ("love", "hearts"),
    "cross": ("plus", "plus sign"),
    "diamond": ("rhombus", "kite"),
    "ring": ("circle", "hoop"),
}
UNREADABLE = ("unanswerable", "answering does not require reading text in the image")


def variants(answer: str) -> tuple[str, ...]:
    """What somebody may write instead: a synonym, less, or something wrong but near."""
    if answer in (YES, NO):
        return ((NO if answer == YES else YES).lower(),)
    if answer.isdigit():
        number = int(answer)
        return (str(number + 1), str(max(0, number - 1)) if number else "1")
    if answer in COLOURS:
        return COLOUR_NAMES[answer]
    if answer in SHAPES:
        return SHAPE_NAMES[answer]
    colour, _, shape = answer.partition(" ")
    if colour in COLOURS:
        return (shape, colour, f"{shape} shape")
    return (
        answer.replace("top", "upper").replace("bottom", "lower"),
        "middle" if answer == "center" else answer.split()[-1],
    )


def ten_answers(question: Question, rng: random.Random) -> list[str]:
    """What ten annotators write, in lower case; at least five agree on the right answer, so that it scores in full."""
    chances = AGREEING_YES_NO if question.answer in (YES, NO) else AGREEING
    agreeing = rng.choices(tuple(chances), tuple(chances.values()))[0]
    right = question.answer.lower()
    if question.answer in WORDS:
        others = [misread(question.answer, rng).lower(), misread(question.answer, rng).lower(), rng.choice(UNREADABLE)]
    else:
        others = [other for other in variants(question.answer) if other != right] or ["unanswerable"]
    answers = [right] * agreeing + rng.choices(others, k=ANNOTATORS - agreeing)
    if agreeing == 5 and len(set(answers)) == 2:
        answers[-1] = right  # no tie for the most frequent answer
    rng.shuffle(answers)
    return answers
