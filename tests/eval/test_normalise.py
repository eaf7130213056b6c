"""Normal forms against cases of the upstream normalisers, and the accuracy against its closed form."""

from __future__ import annotations

import json

import pytest

from llava_prumerge.evaluation.normalise import (
    CONTRACTIONS,
    agree_with_others,
    best_constant,
    normalise_m4c,
    normalise_vqa,
    score_normalised,
)
from llava_prumerge.evaluation.vqav2 import score_official


@pytest.mark.parametrize(
    ("text", "vqa", "m4c"),
    [
        ("Two dogs.", "2 dogs", "2 dogs"),
        ("The cat's", "cat's", "cat 's"),
        ("a,b", "b", "ab"),  # VQAEval leaves "a b" and drops the article
        ("1,000", "1000", "1000"),
        ("red, blue", "red blue", "red blue"),
        ("dont", "don't", "don't"),
        ("shouldn'tve", "shouldn't've", "shouldn't've"),
        ("Id've", "id've", "id've"),  # the list has it capitalised, and never meets it
        ("somebody'd", "somebodyd", "somebodyd"),
        ("2.5", "2.5", "2.5"),
        ("2.", "2", "2"),
        ("12:30 p.m.", "12:30 pm", "12:30 pm"),
        ("$5", "$5", "$5"),
        ("half-full", "half full", "half full"),
        ("none\tof\nthem", "0 of them", "0 of them"),
        ("what?", "what", "what"),
        ("", "", ""),
    ],
)
def test_normal_forms(text: str, vqa: str, m4c: str) -> None:
    assert normalise_vqa(text) == vqa
    assert normalise_m4c(text) == m4c


def test_at_most_32_full_stops_are_removed() -> None:
    assert normalise_vqa("." * 40) == "." * 8


def test_contractions_lack_exactly_one_apostrophe() -> None:
    assert CONTRACTIONS["y'alld've"] == "y'all'd've"
    assert "yalldve" not in CONTRACTIONS
    assert all(value == "somebodyd" or value.count("'") == key.count("'") + 1 for key, value in CONTRACTIONS.items())


def test_upstream_cases(real) -> None:
    cases = json.loads(real("vqav2/normalisation_cases.json").read_text("utf-8"))
    assert [normalise_m4c(case["s"]) for case in cases] == [case["m4c"] for case in cases]
    assert [normalise_vqa(case["s"]) for case in cases] == [case["official"] for case in cases]


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_leaves_each_human_out(matches: int, accuracy: float) -> None:
    human = ["yes"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert agree_with_others("yes", human) == pytest.approx(accuracy)


def test_official_mode_takes_unanimous_answers_verbatim() -> None:
    unanimous, divided = ["yes"] * 10, ["yes"] * 9 + ["Yes."]
    assert score_official("Yes", unanimous) == 0
    assert score_official("Yes", divided) == 1
    assert score_normalised("Yes", unanimous, normalise_vqa) == 1


def test_best_constant_answer() -> None:
    assert best_constant([["red"] * 10, ["red"] * 2 + ["blue"] * 8]) == ("red", pytest.approx(80.0))
