"""The words of a question that say what it is about, as MMTok takes them."""

from __future__ import annotations

import re

FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
"""Sentences of LLaVA's prompts that say how to answer."""
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the am is are was were be been being have has had having do does did doing done "
        "i you he she it we they what which who whom whose where when why how "
        "and or but so if then question answer to for with by from at into onto upon",
    )
)
ROLES = frozenset({"user", "human", "assistant"})
"""Names of a template's sides, which no question is about."""


def content_words(text: str) -> list[str]:
    """Words of a question without those that every question has; all of them where nothing would be left.

    Args:
        text: the question, perhaps with a sentence that says how to answer.
    """
    for sentence in FORMATS:
        text = text.replace(sentence, " ")
    words = re.findall(r"\w+", text)
    words = [word for word in words if word.lower() not in ROLES] or words
    return [word for word in words if word.lower() not in STOP_WORDS] or words
