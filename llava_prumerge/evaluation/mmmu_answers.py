"""Reading MMMU's answers by the official rules: an option out of a sentence, numbers and texts of a short answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

STRIPPED = (",", ".", "!", "?", ";", ":", "'")
"""Taken off both ends one after the other, in this order and once."""
LONG = 5
"""Answers of more words than this are searched for the options' texts."""
ANNOUNCED = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
LINES = re.compile(r"\.\s(?=[A-Z])|\n")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def read_choice(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer chooses: "(B)", else a lone B, else in a long answer the option's text; the last of several.

    Args:
        text: the answer.
        options: the options' texts by letter.

    Returns:
        A letter of `options`, or None where none is found.
    """
    for mark in STRIPPED:
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in options}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(text.split()) > LONG:
        lower = text.lower()
        places = {letter: lower.rfind(option.lower()) for letter, option in options.items()}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    return None


def as_number(text: str) -> float | None:
    """A text as a number, commas between thousands taken out; None for other texts."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def normalise(text: str) -> list[float | str]:
    """A number rounded to two places, or the text in lower case; a lone letter must stand apart from others."""
    text = text.strip()
    number = as_number(text)
    if number is not None:
        return [round(number, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def key_parts(text: str) -> list[str]:
    """What stands behind the announcing words of each line; the whole answer where nothing is announced."""
    text = text.strip().strip(".").lower()
    found = []
    lines = LINES.split(text)
    for number, line in enumerate(lines):
        words = (*ANNOUNCED, "=") if number == len(lines) - 1 else ANNOUNCED
        tails = [line.split(word)[-1].strip() for word in words if word in line]
        shortest = next((tail for tail in sorted(tails, key=len)), None)
        if shortest and shortest not in STRIPPED:
            found.append(shortest)
    return found or [text]


def as_numbers_and_texts(text: str) -> set[float | str]:
    """Everything a short answer says: its key parts and all numbers in them, in their normal form."""
    parts = key_parts(text)
    numbers = [found for part in parts for pattern in NUMBERS for found in pattern.findall(part)]
    return {value for part in (*parts, *numbers) for value in normalise(part)}


def is_open_answer_right(said: set[float | str], truth: Sequence[str]) -> bool:
    """Whether a number of the answer equals a true one, or a text of the answer contains a true text."""
    wanted = [value for text in truth for value in normalise(text)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in said)
