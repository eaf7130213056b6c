"""A question without what its template puts around it, and those of its words that say what it is about."""

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
ROLES = r"(?:user|human|assistant)"
"""Names of a template's sides."""


def question_of(text: str) -> str:
    """A turn without the names of sides at its ends; empty where it has no words."""
    text = re.sub(rf"^\W*{ROLES}\b\W*|\s{ROLES}\b\W*$", " ", text, flags=re.IGNORECASE).strip()
    return text if re.search(r"\w", text) else ""


def content_words(text: str) -> list[str]:
    """Words of a question without those that every question has; all of them where nothing would be left.

    Args:
        text: the question, perhaps with a sentence that says how to answer.
    """
    for sentence in FORMATS:
        text = text.replace(sentence, " ")
    words = re.findall(r"\w+", question_of(text))
    return [word for word in words if word.lower() not in STOP_WORDS] or words
