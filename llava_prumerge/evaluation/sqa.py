"""ScienceQA (test): multiple choice, with and without image; the paper's number is over the questions that have one.

Rules: LLaVA's eval_science_qa. A letter is read from three answer forms, case-sensitively and without stripping;
anything else fails and counts as wrong, with no random guess in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_prumerge.evaluation.benchmark import OPTION_LETTER, Benchmark, Files, Question, without_markers
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    field,
    identifier,
    list_field,
    name_keys,
    read_object,
    read_placed,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score

LETTERS = "ABCDE"
SPLIT = "test"
IMAGE_MARK = "<image>"
SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the point matches anything, but something must follow the letter


@dataclass(frozen=True)
class Problem:
    """One question's options and right answer."""

    choices: int
    answer: int
    has_image: bool


def read_letter(text: str) -> str | None:
    """The letter of "B", "B. because ..." or exactly one "The answer is B."; None for anything else."""
    if text and text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def choose(letter: str | None, choices: int) -> int:
    """The option's number, -1 where there is no letter or no such option."""
    return LETTERS[:choices].find(letter) if letter else -1


class ScienceQa(Benchmark):
    """Accuracy over the test questions that have an image."""

    name = "sqa"
    title = "SQA-I"
    headline = "img_accuracy"
    folder = "scienceqa"
    max_new_tokens = 1024

    def files(self, data: Path) -> Files:
        root = data / self.folder
        return Files(
            root / "llava_test_CQM-A.json", root / "problems.json", root / "pid_splits.json", root / "images" / "test"
        )

    def questions(self, files: Files) -> list[Question]:
        path = files.need("questions")
        questions = []
        for place, record in read_placed(path):
            turns = list_field(record, "conversations", place)
            turn = text_field(turns[0] if turns else None, "value", place)
            image = record.get("image") or None
            if image is not None and not isinstance(image, str):
                raise EvaluationError(f"{place}: 'image' must be a path, found {shorten(image)}")
            text = f"{without_markers(turn, image is not None, place)}\n{OPTION_LETTER}"
            prompt = f"{IMAGE_MARK}\n{text}" if image else text
            questions.append(Question(identifier(record, place, "id"), prompt, text, image, place=place))
        return questions

    def references(self, files: Files) -> dict[Key, Problem]:
        path, split_path = files.need("annotations"), files.need("split")
        problems = {str(key): problem for key, problem in read_object(path).items()}
        listed = [str(key) for key in list_field(read_object(split_path), SPLIT, split_path)]
        if missing := [key for key in listed if key not in problems]:
            raise EvaluationError(f"{path}: no problems for {name_keys(missing)} of split {SPLIT!r} in {split_path}")
        return {key: self.read_problem(problems[key], path) for key in listed}

    def read_problem(self, problem: Mapping[str, object], path: Path) -> Problem:
        """One entry of problems.json."""
        choices, answer = list_field(problem, "choices", path), field(problem, "answer", path)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise EvaluationError(
                f"{path}: answer {answer!r} is not the number of one of the choices in {shorten(problem)}"
            )
        return Problem(len(choices), answer, bool(problem.get("image")))

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path)

    def measure(self, references: Sequence[Problem], texts: Sequence[str], **options: str) -> Score:
        letters = [read_letter(text) for text in texts]
        chosen = [choose(letter, problem.choices) for letter, problem in zip(letters, references, strict=True)]
        right = [choice == problem.answer for choice, problem in zip(chosen, references, strict=True)]
        pictured = [hit for hit, problem in zip(right, references, strict=True) if problem.has_image]
        blind = [1 / problem.choices for problem in references if problem.has_image]
        share = 100 * sum(pictured) / len(pictured) if pictured else 0.0
        metrics = {
            "img_accuracy": share,
            "img_correct": sum(pictured),
            "img_total": len(pictured),
            "accuracy": 100 * sum(right) / len(right),
            "correct": sum(right),
            "total": len(right),
            "failed": letters.count(None),
            "no_such_option": sum(choice < 0 for choice in chosen) - letters.count(None),
        }
        return Score.of_marks(
            metrics,
            share,
            right,
            over=pictured,
            chance=100 * sum(blind) / len(blind) if blind else 0.0,
            chance_rule="a random option",
        )
