"""The words that a question is about."""

from __future__ import annotations

import pytest

from llava_prumerge.text.content_words import content_words, question_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What color is the dog's collar?", ["color", "dog", "s", "collar"]),
        ("USER: Is there a cat on the mat? ASSISTANT:", ["there", "cat", "on", "mat"]),
        ("How many?\nAnswer the question using a single word or phrase.", ["many"]),
        ("What is it?", ["What", "is", "it"]),
        ("", []),
        ("ASSISTANT:", []),
        ("Which user is the assistant of whom?", ["user", "assistant", "of"]),
    ],
)
def test_stop_words_go_unless_nothing_is_left(text: str, words: list[str]) -> None:
    assert content_words(text) == words


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("USER: Is it red?\nASSISTANT:", "Is it red?"),
        ("Is it red? assistant\n", "Is it red?"),
        ("Who is the user of it?", "Who is the user of it?"),
        ("ASSISTANT:", ""),
        ("Who uses it?", "Who uses it?"),
    ],
)
def test_sides_are_no_part_of_a_question(text: str, question: str) -> None:
    assert question_of(text) == question
