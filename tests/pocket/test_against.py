"""Pairs of one method with every other of a comparison."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llava_prumerge.evaluation.records import EvaluationError
from playground.pocket.comparison.against import differences, page
from playground.pocket.comparison.report import Evaluated, Marks, Scale

MARKS: dict[str, Marks] = {
    "ours": {"vqav2": [1.0, 1.0, 0.0, 1.0], "pope": [1.0, 1.0]},
    "near": {"vqav2": [1.0, 0.0, 0.0, 1.0], "pope": [1.0, 1.0]},
    "far": {"vqav2": [0.0, 0.0, 0.0, 0.0], "pope": [0.0, 0.0]},
}


def evaluated() -> Evaluated:
    """Three methods at 9 tokens, of which one was also trained, one that was only trained, and one without results."""
    lines: dict[tuple[str, int, bool], list[Any]] = {(name, 9, False): [name] for name in (*MARKS, "missing")}
    lines["near", 9, True] = ["far"]
    lines["learnt", 9, True] = ["ours"]
    made = SimpleNamespace(
        lines=lambda: lines,
        is_whole=lambda row: row in MARKS,
        marks=lambda rows: MARKS[rows[0]],
        scale=Scale(),
        places=SimpleNamespace(study=SimpleNamespace(budgets=(18, 9))),
    )
    return cast(Evaluated, made)


def test_differences_are_paired_and_the_best_comes_first() -> None:
    found = differences(evaluated(), "ours", 9)
    assert [name for name, *_ in found] == ["near", "far"]
    assert [round(value, 3) for value in found[0][1:3]] == [75.0, 12.5]
    half = Scale().difference(MARKS["ours"], MARKS["near"])[1]
    assert found[0][3] == half > 12.5


def test_a_method_that_is_only_trained_is_compared_and_stands_against_none() -> None:
    found = differences(evaluated(), "learnt", 9)
    assert [(name, round(value, 3)) for name, _, value, _ in found] == [("ours", 0.0), ("near", 12.5), ("far", 87.5)]


def test_the_page_says_what_is_significant_and_what_is_missing() -> None:
    text = "\n".join(page(evaluated(), "ours", 8))
    assert "'ours' has no result at 18 tokens" in text and "9 equivalent tokens: ours 87.5" in text
    assert "| near | 75.0 | +12.5 ± 24.5 |" in text and "| far | 0.0 | **+87.5 ± 24.5** |" in text
    with pytest.raises(EvaluationError, match="there are: far, learnt, near, ours"):
        differences(evaluated(), "theirs", 9)
