"""The sentence about what a method can save, over invented timings: each of its forms, and its numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llava_prumerge.inference.verdict import Measured, verdict


def measured(new_tokens: int = 11, equivalent: float = 576, floor: float = 0.05, **seconds: float) -> Measured:
    """Milliseconds by part, `decode` of each token; 576 of 640 tokens of the prompt are visual."""
    given = {
        part: seconds.get(part, 0.0) / 1e3 for part in ("pixels", "tower", "reducer", "projector", "prefill", "decode")
    }
    total = sum(given.values()) + given["decode"] * (new_tokens - 2)
    return Measured(given | {"total": total}, new_tokens, 640, 576, equivalent, {"prefill": floor})


CASES: dict[str, tuple[Measured, Measured, tuple[float, float, float], list[str]]] = {
    "decode": (
        measured(tower=50, prefill=150, decode=80),  # 10 tokens after the first: 1000 ms in all
        measured(tower=50, prefill=50, decode=80, equivalent=64),
        (0.09, 0.1, 0.11),
        ["Decode-bound: 80% of the time", "the 10 tokens after the first", "which m cuts, take about 14%", "saved 10% here"],
    ),
    "tower": (
        measured(pixels=100, tower=600, projector=20, prefill=180, decode=10),
        measured(pixels=100, tower=600, prefill=80, decode=10, equivalent=64),
        (0.11, 0.12, 0.13),
        ["Tower-bound: 70%", "before it acts", "which m cuts, take about 18%", "saved 12% here"],
    ),
    "prefill": (
        measured(tower=100, projector=50, prefill=750, decode=10, floor=0.5),
        measured(tower=100, prefill=200, decode=10, equivalent=64, floor=0.1),
        (0.5, 0.6, 0.7),
        ["Prefill-bound: 80%", "90% of the prompt is visual", "which m cuts, take about 72%", "saved 60% here"],
    ),
    "launch": (
        measured(tower=100, prefill=800, decode=10, floor=0.05),
        measured(tower=100, prefill=790, decode=10, equivalent=144, floor=0.02),
        (-0.01, 0.01, 0.02),
        ["Launch-bound: the prefill takes 16 times the least", "with 25% of the visual tokens", "m saved nothing here beyond the spread of the rounds (+1.0%)"],
    ),
    "no launch near the floor": (
        measured(tower=100, prefill=800, decode=10, floor=0.5),
        measured(tower=100, prefill=790, decode=10, equivalent=144, floor=0.2),
        (-0.01, 0.01, 0.02),
        ["Prefill-bound: 80%", "saved nothing here"],
    ),
    "no launch where few tokens went": (
        measured(tower=100, prefill=800, decode=10, floor=0.01),
        measured(tower=100, prefill=790, decode=10, equivalent=500, floor=0.01),
        (-0.01, 0.01, 0.02),
        ["Prefill-bound: 80%"],
    ),
    "slower": (
        measured(tower=100, prefill=100, decode=80),
        measured(tower=100, reducer=150, prefill=50, decode=80, equivalent=64),
        (-0.12, -0.1, -0.08),
        ["Decode-bound", "made it 10% slower here, its own rule taking 150 ms"],
    ),
    "nothing dropped": (
        measured(tower=100, prefill=100, decode=80),
        measured(tower=100, reducer=10, prefill=100, decode=80),
        (-0.1, 0.0, 0.1),
        ["m dropped no token of this image"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_sentence_says_what_the_numbers_do(name: str) -> None:
    none, method, saved, told = CASES[name]
    sentence = verdict("m", none, method, saved)
    assert all(words in sentence for words in told), sentence
    assert sentence.endswith(".") and not re.search(r"\.\s", sentence), "one sentence"
    others = [words for other, case in CASES.items() for words in case[3][:1] if words.split(":")[0] not in told[0]]
    assert not any(words.split(":")[0] in sentence for words in others), "and no other's"


@pytest.mark.parametrize("largest", ["tower", "prefill", "decode"])
def test_what_takes_longest_is_named(largest: str) -> None:
    shares: dict[str, Any] = {"tower": 100, "prefill": 100, "decode": 10} | {largest: {"decode": 30}.get(largest, 300)}
    sentence = verdict("m", measured(**shares), measured(**shares, equivalent=64, floor=1), (0.1, 0.2, 0.3))
    assert sentence.lower().startswith(f"{largest}-bound: 60%") or largest == "prefill"
