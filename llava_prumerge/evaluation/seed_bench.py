"""SEED-Bench (1), image questions: multiple choice in nine dimensions.

Rules: LLaVA's converter, where an answer is right if it is exactly the letter; `read=first_letter` takes the first
letter instead, in any case, as lmms-eval does. Questions about videos are neither asked nor scored: their number
differs between revisions of the data, so say "SEED (image)" with the number. The id 49914 stands twice in the official
file: the last answer given under it counts for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question, answer_text, read_questions
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    field,
    identifier,
    name_keys,
    objects,
    read_json,
    read_records,
    shorten,
)
from llava_prumerge.evaluation.results import Score
from llava_prumerge.ground.json_lines import write_json_lines

LETTERS = "ABCD"
TWICE = "49914"
DIMENSIONS = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instance Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Recognition",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
)


@dataclass(frozen=True)
class Choice:
    """The right letter of one question, and its dimension."""

    answer: str
    dimension: str


def is_video(record: Mapping[str, Any]) -> bool:
    """Whether a record of either file is about a video."""
    return record.get("data_type") == "video" or str(record.get("question_id", "")).startswith("v")


class SeedBench(Benchmark):
    """Accuracy over the image questions."""

    name = "seed_bench"
    title = "SEED-I"
    headline = "accuracy"
    folder = "seed_bench"
    options = {"read": ("exact", "first_letter")}

    def files(self, data: Path) -> Files:
        root = data / self.folder
        truth = root / "SEED-Bench.json"
        return Files(root / "llava-seed-bench.jsonl", truth if truth.is_file() else None, images=root)

    def questions(self, files: Files) -> list[Question]:
        asked = read_questions(files.need("questions"))
        return [question for question in asked if not is_video({"question_id": question.id})]

    def references(self, files: Files) -> dict[Key, Choice]:
        path = files.need("annotations")
        content = read_json(path)
        names = {}
        if isinstance(content, dict):
            types = content.get("question_type")
            types = types.items() if isinstance(types, dict) else ()
            names = {number: name for name, number in types if isinstance(number, int)}
            content = field(content, "questions", path)
        content = objects(content, path, "a list of questions, as SEED-Bench.json has")
        references: dict[Key, Choice] = {}
        for record in content:
            if is_video(record):
                continue
            own = identifier(record, path)
            key = f"{own} again" if own == TWICE and own in references else own
            if key in references:
                raise EvaluationError(f"{path}: duplicate entries for {own}")
            references[key] = self.read_choice(record, names, path)
        return references

    def read_choice(self, record: Record, names: Mapping[object, str], path: Path) -> Choice:
        """One question's truth."""
        answer = field(record, "answer", path)
        if answer not in tuple(LETTERS):
            raise EvaluationError(f"{path}: the answer {shorten(answer)} is not one of {', '.join(LETTERS)}")
        kind = record.get("question_type_id")
        if isinstance(kind, bool) or not isinstance(kind, int | None):
            raise EvaluationError(f"{path}: 'question_type_id' must be a whole number, found {shorten(kind)}")
        known = kind is not None and 1 <= kind <= len(DIMENSIONS)
        dimension = names.get(kind) or (DIMENSIONS[kind - 1] if known else "all")
        return Choice(answer, str(dimension))

    def part_of(self, reference: Choice) -> str:
        return reference.dimension

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path)

    def read_answers(self, path: Path, files: Files) -> dict[Key, str]:
        """Answers by id, without those to questions about videos."""
        texts: dict[Key, str] = {}
        for record in read_records(path):
            key = self.answer_key(record, path)
            if is_video(record):
                continue
            if key in texts and key != TWICE:
                raise EvaluationError(f"{path}: duplicate entries for {name_keys([key])}")
            texts[key] = answer_text(record, path, "prediction")
        if TWICE in texts and files.annotations is not None:
            texts |= {key: texts[TWICE] for key in self.references(files) if key == f"{TWICE} again"}
        return texts

    def measure(self, references: Sequence[Choice], texts: Sequence[str], read: str = "exact") -> Score:
        said = [text.strip()[:1].upper() for text in texts] if read == "first_letter" else list(texts)
        right = [letter == choice.answer for letter, choice in zip(said, references, strict=True)]
        kinds: dict[str, list[bool]] = defaultdict(list)
        for hit, choice in zip(right, references, strict=True):
            kinds[choice.dimension].append(hit)
        share = 100 * sum(right) / len(right)
        metrics = {"accuracy": share, "correct": sum(right)}
        metrics |= {name: 100 * sum(hits) / len(hits) for name, hits in kinds.items() if name != "all"}
        return Score.of_marks(
            {**metrics, "read": read, "no_letter": sum(text not in LETTERS for text in said)},
            share,
            right,
            chance=25.0,
            chance_rule="a random option",
        )

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write the JSON lines that the leaderboard takes."""
        texts = self.read_answers(answers, files)
        target = out.with_suffix(".jsonl")
        write_json_lines(target, ({"question_id": key, "prediction": text} for key, text in texts.items()))
        return target
