"""VizWiz-VQA: questions that blind people asked about their photographs; ten human answers each.

Rules: the official evaluation. The prediction is brought to VQAEval's normal form, the human answers are not, and
humans are left out by position. `mode=both_normalised` normalises both sides, as lmms-eval does. The validation split
is scored here. LLaVA's question file asks the test split, whose answers are not public: that gives a submission.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import (
    SHORT_ANSWER,
    Benchmark,
    Files,
    Question,
    read_questions,
    without_markers,
)
from llava_prumerge.evaluation.human_answers import HumanAnswers, means_by_type, read_human_answers
from llava_prumerge.evaluation.normalise import (
    agree_with_others,
    best_constant,
    normalise_m4c,
    normalise_vqa,
    score_normalised,
)
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    identifier,
    index_by,
    objects,
    read_json,
    read_placed,
    read_records,
    require_same_keys,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score
from llava_prumerge.ground.files import write_json

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
NUMBER = re.compile(r"([0-9]{1,18})\.\w+$")


@dataclass(frozen=True)
class Photo:
    """What people answered about one photograph, and whether it can be answered at all."""

    humans: HumanAnswers
    answerable: bool


def average_precision(truth: Sequence[bool], scores: Sequence[float]) -> float:
    """Precision averaged over the steps of recall; equal scores are one step."""
    positives, hits, seen, area = sum(truth), 0, 0, 0.0
    for level in sorted(set(scores), reverse=True):
        found = [is_true for is_true, score in zip(truth, scores, strict=True) if score == level]
        hits, seen = hits + sum(found), seen + len(found)
        area += sum(found) / positives * hits / seen if positives else 0.0
    return area


class VizWiz(Benchmark):
    """Mean VQA accuracy of the validation split."""

    name = "vizwiz"
    title = "VizWiz"
    headline = "overall"
    folder = "vizwiz"
    answer_field = "answer"
    options = {"mode": ("official", "both_normalised")}

    def files(self, data: Path) -> Files:
        root = data / self.folder
        truth = root / "val.json"
        if truth.is_file():
            return Files(truth, truth, images=root / "val")
        return Files(root / "llava_test.jsonl", None, images=root / "test")

    def questions(self, files: Files) -> list[Question]:
        path = files.need("questions")
        placed = read_placed(path)
        if placed and "answers" not in placed[0][1]:
            return read_questions(path)
        questions = []
        for place, record in placed:
            asked, image = text_field(record, "question", place), text_field(record, "image", place)
            written = f"{asked}\n{UNANSWERABLE}\n{SHORT_ANSWER}"
            text = f"{without_markers(asked, True, place)}\n{UNANSWERABLE}\n{SHORT_ANSWER}"
            questions.append(Question(image, written, text, image, place=place))
        return questions

    def references(self, files: Files) -> dict[Key, Photo]:
        path = files.need("annotations")
        content = objects(read_json(path), path, "a list of annotations, as val.json is")
        records = index_by(content, lambda record: text_field(record, "image", path), path)
        return {key: self.read_photo(record, path) for key, record in records.items()}

    def read_photo(self, record: Record, path: Path) -> Photo:
        """One annotation."""
        humans = read_human_answers(record, shorten(record["image"]), path)
        answerable = record.get("answerable", 1)
        if answerable not in (0, 1):
            raise EvaluationError(f"{path}: 'answerable' must be 0 or 1, found {shorten(answerable)}")
        return Photo(humans, bool(answerable))

    def part_of(self, reference: Photo) -> str:
        return reference.humans.answer_type

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path, "image" if "image" in record else "question_id")

    def read_answers(self, path: Path, files: Files) -> dict[Key, str]:
        """Answers of an answer file or a submission, by image; an id may be the number in the image's name."""
        texts = super().read_answers(path, files)
        if files.annotations is None or not all(re.fullmatch("[0-9]{1,18}", str(key)) for key in texts):
            return texts
        numbered = {}
        for image in self.references(files):
            found = NUMBER.search(str(image))
            if found:
                numbered[str(int(found.group(1)))] = image
        return {numbered.get(str(int(str(key))), key): text for key, text in texts.items()}

    def measure(self, references: Sequence[Photo], texts: Sequence[str], mode: str = "official") -> Score:
        pairs = list(zip(texts, references, strict=True))
        if mode == "official":
            marks = [agree_with_others(normalise_vqa(text), photo.humans.answers) for text, photo in pairs]
        else:
            marks = [score_normalised(text, photo.humans.answers, normalise_m4c) for text, photo in pairs]
        metrics: dict[str, Any] = means_by_type(marks, [photo.humans.answer_type for photo in references])
        said = [normalise_vqa(text) == "unanswerable" for text in texts]
        metrics |= answerability([not photo.answerable for photo in references], said)
        metrics["said_unanswerable"] = 100 * sum(said) / len(said)
        constant, chance = best_constant([list(photo.humans.answers) for photo in references])
        return Score.of_marks(
            {**metrics, "mode": mode},
            metrics["overall"],
            marks,
            chance=chance,
            chance_rule=f"always {constant!r}, the best constant answer",
        )

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write the test split's submission: LLaVA's normal form of each answer, in the order of the questions."""
        if files.annotations is not None:
            return None
        path = files.need("questions")
        records = index_by(read_records(answers), lambda record: identifier(record, answers), answers)
        asked = read_records(path)
        keys = [identifier(record, path) for record in asked]
        require_same_keys(keys, records, answers, path)
        rows = [
            {
                "image": text_field(question, "image", path),
                "answer": normalise_m4c(text_field(records[key], "text", answers)),
            }
            for key, question in zip(keys, asked, strict=True)
        ]
        target = out.with_suffix(".json")
        write_json(target, rows, indent=None)
        return target


def answerability(truth: Sequence[bool], said: Sequence[bool]) -> dict[str, float]:
    """The second task, where saying "unanswerable" is the prediction: average precision and F1 of that class."""
    hits = sum(is_true and says for is_true, says in zip(truth, said, strict=True))
    both = sum(truth) + sum(said)
    return {
        "unanswerable_average_precision": 100 * average_precision(truth, [float(says) for says in said]),
        "unanswerable_f1": 200 * hits / both if both else 0.0,
    }
