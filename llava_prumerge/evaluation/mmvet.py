"""MM-Vet: 218 open questions that need several capabilities at once; a judge grades each answer from 0 to 1.

Rules: the official evaluator. The judge sees one message, a table of graded examples with the question at its end, and
says a number; a reply that is none is asked again up to five times, then counts 0. A capability's score is the mean
over the questions that need it. Grades depend on the judge's version: the result names it. LLaVA's 36.1 (13B) is one
run of GPT-4, its 31.1 (7B) the mean of three.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import Files, Question, read_questions
from llava_prumerge.evaluation.judge import Judge
from llava_prumerge.evaluation.judged import JudgedBenchmark
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    bounded_number,
    identifier,
    read_json,
    read_one_object,
    require_same_keys,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score, normal

ATTEMPTS = 5
WARMER = 0.5
"""How much the judge's temperature rises with each attempt."""
TOKENS = 3
INSTRUCTION = (
    "Grade the prediction of a model from 0.0 (totally wrong) to 1.0 (totally right) in steps of 0.1, by comparing it "
    "with the ground truth. <AND> in the ground truth means that all of its parts are needed, <OR> that one of them is "
    "enough. Reply with the number that belongs in the last column of the last row, and nothing else."
)
EXAMPLES = (
    ("What is x in the equation?", "-1 <AND> -5", "x = 3", "0.0"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -1", "0.5"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -5", "0.5"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -5 or 5", "0.5"),
    ("What is x in the equation?", "-1 <AND> -5", "x = -1 or x = -5", "1.0"),
    ("What animal is on the sign?", "a deer <OR> a moose", "It is a moose.", "1.0"),
    ("What animal is on the sign?", "a deer <OR> a moose", "There is a sign beside a road.", "0.2"),
)
AGAIN = "Reply with one number between 0.0 and 1.0."


@dataclass(frozen=True)
class Item:
    """A question with its truth and the capabilities it needs."""

    question: str
    answer: str
    capabilities: tuple[str, ...]


def read_grade(reply: str) -> float | None:
    """The number that a reply begins with, if it lies between 0 and 1."""
    try:
        grade = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None


def read_capabilities(values: list[Any], key: str, path: Path) -> tuple[str, ...]:
    """The names of the capabilities that a question needs."""
    if not values or not all(isinstance(value, str) for value in values):
        raise EvaluationError(f"{path}: the capabilities of {shorten(key)} must be names, found {shorten(values)}")
    return tuple(values)


def make_prompt(item: Item, prediction: str, again: bool = False) -> str:
    """The judge's message about one answer."""
    truth = item.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    rows = ["Question | Ground truth | Prediction | Correctness", "--- | --- | --- | ---"]
    rows += [" | ".join(example) for example in EXAMPLES]
    rows.append(f"{item.question} | {truth} | {prediction} | ")
    return "\n".join([INSTRUCTION, "", *rows, *(["", AGAIN] if again else [])])


class MmVet(JudgedBenchmark):
    """Mean grade over all questions, in percent."""

    name = "mmvet"
    title = "MM-Vet"
    headline = "total"
    folder = "mm-vet"
    max_new_tokens = 1024

    def files(self, data: Path) -> Files:
        root = data / self.folder
        truth = root / "mm-vet.json"
        return Files(root / "llava-mm-vet.jsonl", truth if truth.is_file() else None, images=root / "images")

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, Item]:
        path = files.need("annotations")
        content = read_json(path)
        if not isinstance(content, dict):
            raise EvaluationError(f"{path}: expected an object of questions by id, as mm-vet.json is")
        return {key: self.read_item(key, record, path) for key, record in content.items()}

    def read_item(self, key: str, record: Any, path: Path) -> Item:
        """An entry of mm-vet.json, or the list of capabilities alone, which is enough for grades that exist."""
        if isinstance(record, list):
            return Item("", "", read_capabilities(record, key, path))
        if not isinstance(record, dict) or not isinstance(record.get("capability"), list):
            raise EvaluationError(f"{path}: {shorten(key)} must have question, answer and a list 'capability'")
        answer, question = text_field(record, "answer", path), text_field(record, "question", path)
        return Item(question, answer, read_capabilities(record["capability"], key, path))

    def answer_key(self, record: Record, path: Path) -> Key:
        own = identifier(record, path)
        return own if own.startswith("v1_") else f"v1_{own}"

    def read_answers(self, path: Path, files: Files) -> dict[Key, str]:
        """Answers of LLaVA's answer file, or of the official result file {"v1_0": answer}."""
        content = read_one_object(path)
        if content is None:
            return super().read_answers(path, files)
        return {key: text_field(content, key, path) for key in content}

    def grade(self, references: Sequence[Item], texts: Sequence[str], judge: Judge) -> Score:
        return self.add_up(references, [[self.ask(judge, *pair)] for pair in zip(references, texts, strict=True)])

    def ask(self, judge: Judge, item: Item, prediction: str) -> float:
        """The judge's grade of one answer; 0 where it gives no number."""
        for attempt in range(ATTEMPTS):
            content = make_prompt(item, prediction, attempt > 0)
            reply = judge.ask([{"role": "user", "content": content}], WARMER * attempt, TOKENS, attempt)
            grade = read_grade(reply)
            if grade is not None:
                return grade
        return 0.0

    def read_grades(self, answers: Path, files: Files) -> Score | None:
        """The score of an official grade file, {id: {"score": [one per run]}}."""
        content = read_one_object(answers)
        if not content or not all(isinstance(value, dict) and "score" in value for value in content.values()):
            return None
        references = self.references(files)
        require_same_keys(references, content, answers, files.need("annotations"))
        scores = [value["score"] for value in content.values()]
        if not all(isinstance(score, list) and len(score) == len(scores[0]) > 0 for score in scores):
            raise EvaluationError(f"{answers}: every 'score' must be a list of one grade for each run")
        grades = {
            key: [bounded_number(grade, answers, f"a grade of {shorten(key)}", 0, 1) for grade in value["score"]]
            for key, value in content.items()
        }
        return self.add_up(list(references.values()), [grades[str(key)] for key in references])

    def add_up(self, references: Sequence[Item], grades: Sequence[Sequence[float]]) -> Score:
        """Means by capability, by combination of capabilities and in all, over runs. `grades`: per question, per run."""
        means = [statistics.fmean(found) for found in grades]
        groups: dict[str, list[float]] = defaultdict(list)
        for item, mean in zip(references, means, strict=True):
            for capability in item.capabilities:
                groups[capability].append(mean)
            groups[f"{'+'.join(sorted(item.capabilities))} only"].append(mean)
        runs = [100 * statistics.fmean(run) for run in zip(*grades, strict=True)]
        total = statistics.fmean(runs)
        metrics: Mapping[str, Any] = {
            "total": total,
            "std": statistics.pstdev(runs),
            "runs": runs,
            **{name: 100 * statistics.fmean(found) for name, found in sorted(groups.items())},
        }
        return Score(
            metrics=dict(metrics),
            headline=total,
            interval=normal([[100 * mean for mean in means]], self.maximum),
            interval_rule="normal, over questions",
            n=len(means),
            chance=0.0,
            chance_rule="an empty answer",
            marks=means,
        )
