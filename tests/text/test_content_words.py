"""The words that a question is about."""

from __future__ import annotations

import pytest

from llava_prumerge.text.content_words import content_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What color is the dog's collar?", ["color", "dog", "s", "collar"]),
        ("USER: Is there a cat on the mat? ASSISTANT:", ["there", "cat", "on", "mat"]),
        ("How many?\nAnswer the question using a single word or phrase.", ["many"]),
        ("What is it?", ["What", "is", "it"]),
        ("", []),
    ],
)
def test_stop_words_go_unless_nothing_is_left(text: str, words: list[str]) -> None:
    assert content_words(text) == words
