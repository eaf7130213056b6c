"""GQA (test-dev balanced): open and yes/no questions about scene graphs; accuracy by exact match.

Rules: the official eval.py, and LLaVA's conversion of answers (trailing full stops off, lower case). Only balanced
questions count. Binary is every structural type but `query`. Distribution is the official chi-square over answers in
each group of questions, lower is better. Validity, plausibility and grounding need files that are not published for
test-dev and are not given.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question, read_questions
from llava_prumerge.evaluation.records import (
    Key,
    Record,
    identifier,
    list_field,
    object_field,
    objects,
    objects_by_id,
    read_json,
    read_records,
    require_same_keys,
    text_field,
)
from llava_prumerge.evaluation.results import Score
from llava_prumerge.ground.files import write_json

QUESTIONS = "testdev_balanced_questions.json"
PREDICTIONS = "testdev_balanced_predictions.json"
NOT_STEPS = ("exist", "query: name", "choose name")


@dataclass(frozen=True)
class Fact:
    """What is known of one question: the answer, and by what the official script divides the questions."""

    answer: str
    structural: str
    semantic: str
    steps: int
    words: int
    group: str | None


def read_fact(record: Mapping[str, Any], path: Path) -> Fact:
    """A record of the official question file."""
    types = object_field(record, "types", path)
    groups = object_field({"groups": record.get("groups") or {}}, "groups", path)
    steps = objects(list_field({"semantic": record.get("semantic") or []}, "semantic", path), path, "steps")
    operations = [f"{step.get('operation')}: {step.get('argument')}" for step in steps]
    return Fact(
        text_field(record, "answer", path),
        text_field(types, "structural", path),
        text_field(types, "semantic", path),
        sum(not any(mark in operation for mark in NOT_STEPS) for operation in operations),
        len(text_field(record, "question", path).split()),
        None if groups.get("global") is None else text_field(groups, "global", path),
    )


def as_prediction(text: str) -> str:
    """An answer as LLaVA hands it to the official script."""
    return text.rstrip(".").lower()


def distribution(facts: Sequence[Fact], predictions: Sequence[str]) -> float:
    """The official chi-square of answers against gold answers, weighted by the groups' sizes, divided by 100."""
    golds: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for fact, prediction in zip(facts, predictions, strict=True):
        if fact.group is not None:
            golds[fact.group][fact.answer] += 1
            given[fact.group][prediction] += 1
    total = weight = 0.0
    for group, expected in golds.items():
        size = expected.total()
        total += size * sum((given[group][answer] - count) ** 2 / count for answer, count in expected.items())
        weight += size
    return total / weight / 100 if weight else 0.0


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """Accuracy in percent, and what it is made of."""
    return {"accuracy": 100 * sum(hits) / len(hits) if hits else 0.0, "correct": sum(hits), "n": len(hits)}


class Gqa(Benchmark):
    """Accuracy over all balanced questions."""

    name = "gqa"
    title = "GQA"
    headline = "accuracy"
    folder = "gqa"
    answer_field = "prediction"

    def files(self, data: Path) -> Files:
        root = data / self.folder
        truth = root / "data" / QUESTIONS
        questions = root / "llava_gqa_testdev_balanced.jsonl"
        return Files(questions, truth if truth.is_file() else None, images=root / "data" / "images")

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, Fact]:
        path = files.need("annotations")
        content = objects_by_id(read_json(path), path, f"an object of questions by id, as {QUESTIONS} is")
        balanced = {key: record for key, record in content.items() if record.get("isBalanced", True) is not False}
        if files.questions is not None:
            asked = [self.answer_key(record, files.questions) for record in read_records(files.questions)]
            require_same_keys(balanced, asked, files.questions, path)
        return {key: read_fact(record, path) for key, record in balanced.items()}

    def part_of(self, reference: Fact) -> str:
        return reference.structural

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path, "questionId" if "questionId" in record else "question_id")

    def measure(self, references: Sequence[Fact], texts: Sequence[str], **options: str) -> Score:
        predictions = [as_prediction(text) for text in texts]
        right = [said == fact.answer for said, fact in zip(predictions, references, strict=True)]
        paired = list(zip(references, right, strict=True))
        share = 100 * sum(right) / len(right)

        def by(value: Callable[[Fact], object]) -> dict[str, dict[str, float]]:
            found: dict[Any, list[bool]] = defaultdict(list)
            for fact, hit in paired:
                found[value(fact)].append(hit)
            return {str(key): rate(hits) for key, hits in sorted(found.items())}

        constant, count = Counter(fact.answer for fact in references).most_common(1)[0]
        metrics: dict[str, Any] = {
            "accuracy": share,
            "correct": sum(right),
            "binary": rate([hit for fact, hit in paired if fact.structural != "query"]),
            "open": rate([hit for fact, hit in paired if fact.structural == "query"]),
            "distribution": distribution(references, predictions),
            "structural": by(lambda fact: fact.structural),
            "semantic": by(lambda fact: fact.semantic),
            "steps": by(lambda fact: fact.steps),
            "words": by(lambda fact: fact.words),
        }
        return Score.of_marks(
            metrics,
            share,
            right,
            chance=100 * count / len(references),
            chance_rule=f"always {constant!r}, the most frequent answer",
        )

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write the prediction file that the official eval.py takes."""
        texts = self.read_answers(answers, files)
        asked = [self.answer_key(record, answers) for record in read_records(files.need("questions"))]
        require_same_keys(asked, texts, answers, files.need("questions"))
        target = out.parent / PREDICTIONS
        write_json(target, [{"questionId": key, "prediction": as_prediction(texts[key])} for key in asked], indent=None)
        return target
