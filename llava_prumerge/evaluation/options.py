"""Reading the chosen option out of a free answer to a multiple-choice question, by VLMEvalKit's rules."""

from __future__ import annotations

from collections.abc import Mapping

REFUSED = "Z"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST_WORDS = 4
"""A lone letter counts as the answer only this near the end: earlier it may be an article or an initial."""


def find_letter(answer: str, letters: Mapping[str, str]) -> str | None:
    """The one option letter that is a word near the end; "Z" for a refusal; None for no letter or several."""
    if any(refusal in answer for refusal in REFUSALS):
        return REFUSED
    words = answer.translate(SEPARATORS).split()
    named = [letter for letter in letters if letter in words]
    if not named:
        return REFUSED if REFUSED in words else None
    near_end = len(named) == 1 and words.index(named[0]) >= len(words) - LAST_WORDS
    return named[0] if near_end else None


def find_text(answer: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text occurs in the answer; None when there is none or several, or the answer is an essay."""
    answer = answer.lower()
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    contained = [letter for letter, text in options.items() if text and text.lower() in answer]
    return contained[0] if len(contained) == 1 else None


def find_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The option an answer chooses, by letter or else by text.

    Args:
        answer: what the model said.
        options: the options' texts by letter.

    Returns:
        A letter of `options`, "Z" for a refusal, or None where nothing can be inferred.
    """
    return find_letter(answer, options) or find_text(answer, options)
