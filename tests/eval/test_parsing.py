"""What a free answer is read as, against cases of the upstream parsers."""

from __future__ import annotations

import json

import pytest

from llava_prumerge.evaluation.mme import identify, read_answer
from llava_prumerge.evaluation.options import find_option
from llava_prumerge.evaluation.pope import says_yes
from llava_prumerge.evaluation.sqa import choose, read_letter
from llava_prumerge.evaluation.textvqa import asked_question

OPTIONS = {"A": "tree", "B": "house", "C": "a tall house", "D": "boat"}


@pytest.mark.parametrize(
    ("text", "pope", "mme"),
    [
        ("Yes", True, "yes"),
        ("No", False, "no"),
        ("NO", True, "no"),  # POPE knows No and no alone
        ("no, sir", False, "no"),
        ("Sure. No.", True, "other"),  # only the first sentence counts
        ("It is not", False, "other"),
        ("Nothing", True, "no"),
        ("I know", True, "other"),
        ("   no", False, "other"),  # past the fourth character
        ("  no", False, "no"),
        ("", True, "other"),
    ],
)
def test_yes_or_no(text: str, pope: bool, mme: str) -> None:
    assert says_yes(text) is pope
    assert read_answer(text) == mme


def test_yes_or_no_upstream_cases(real) -> None:
    cases = json.loads(real("pope/yesno_parse_cases.json").read_text("utf-8"))
    assert ["yes" if says_yes(case["s"]) else "no" for case in cases] == [case["pope_official"] for case in cases]
    assert [read_answer(case["s"]) for case in cases] == [case["mme_official"] for case in cases]


@pytest.mark.parametrize(
    ("text", "choices", "letter", "index"),
    [
        ("C", 4, "C", 2),
        ("C", 2, "C", -1),
        ("C. because", 3, "C", 2),
        ("C.", 3, None, -1),
        ("AB", 3, None, -1),
        ("The answer is C.", 3, "C", 2),
        ("The answer is C", 3, None, -1),
        ("The answer is F.", 5, "F", -1),
        ("c", 3, None, -1),
        ("", 3, None, -1),
    ],
)
def test_letters(text: str, choices: int, letter: str | None, index: int) -> None:
    assert read_letter(text) == letter
    assert choose(letter, choices) == index


def test_letters_upstream_cases(real) -> None:
    cases = json.loads(real("scienceqa/letter_parse_cases.json").read_text("utf-8"))
    letters = [read_letter(case["s"]) for case in cases]
    assert [letter or "FAILED" for letter in letters] == [case["answer"] for case in cases]
    chosen = [choose(letter, case["n_choices"]) for letter, case in zip(letters, cases, strict=True)]
    assert chosen == [case["idx"] for case in cases]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        ("(D)", "D"),
        ("**A**", "A"),
        ("the boat", "D"),
        ("a tall house", None),  # holds "house" too
        ("A or B", None),
        ("E", None),
        ("A small boat is there now", "D"),  # the letter is an article, the text decides
        ("Cannot determine the answer", "Z"),
        ("", None),
        ("boat " * 40, None),
    ],
)
def test_options(text: str, option: str | None) -> None:
    assert find_option(text, OPTIONS) == option


def test_options_upstream_cases(real) -> None:
    cases = json.loads(real("mmbench/option_infer_cases.json").read_text("utf-8"))
    found = [find_option(case["s"], case["choices"]) or False for case in cases]
    assert found == [case["vlmeval"] for case in cases]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What Time is it?\nAnswer the question using a single word or phrase.", "what time is it?"),
        ("What?\nReference OCR token: a, B\nAnswer the question using a single word or phrase.", "what?"),
        ("Reference OCR token: a, B\nWhat?\nAnswer the question using a single word or phrase.", "what?"),
        ("OCR tokens: a b. Question: What? Short answer:", "what?"),
        ("What?", None),
        ("a\nb\nc", None),
    ],
)
def test_textvqa_prompts(prompt: str, question: str | None) -> None:
    assert asked_question(prompt) == question


def test_mme_questions_meet_across_files() -> None:
    llava = identify("OCR", "OCR/x.jpg", "Is it red?\nAnswer the question using a single word or phrase.")
    assert llava == identify("OCR", "x.txt", "Is it red?  Please answer yes or no.") == ("OCR", "x", "Is it red?")
