"""VQAv2: open questions on COCO, ten human answers each; accuracy over all questions and per answer type.

Rules: VQAEval's leave-one-out accuracy. The default mode normalises both sides always (as lmms-eval does);
`mode=official` is VQAEval as of 2021, which normalises neither side when all ten humans gave the same string. LLaVA-1.5
reports test-dev, whose answers are on a server: without annotations the submission file for EvalAI is written instead
of a score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question, read_questions
from llava_prumerge.evaluation.human_answers import HumanAnswers, means_by_type, read_human_answers
from llava_prumerge.evaluation.normalise import (
    agree_with_others,
    best_constant,
    flatten,
    normalise_m4c,
    normalise_vqa,
    score_normalised,
)
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    index_by,
    read_json,
    read_records,
    read_text,
    require_same_keys,
    whole_identifier,
)
from llava_prumerge.evaluation.results import Score
from llava_prumerge.ground.files import write_json

ANSWER_TYPES = ("yes/no", "number", "other")


def score_official(prediction: str, human: Sequence[str]) -> float:
    """VQAEval as of 2021: the normal form is taken only where the humans disagree; a unanimous "yes" is not "Yes"."""
    prediction, human = flatten(prediction), [flatten(answer) for answer in human]
    return (
        score_normalised(prediction, human, normalise_vqa)
        if len(set(human)) > 1
        else agree_with_others(prediction, human)
    )


class VqaV2(Benchmark):
    """Mean VQA accuracy over all questions."""

    name = "vqav2"
    title = "VQAv2"
    headline = "overall"
    folder = "vqav2"
    answer_field = "answer"
    options = {"mode": ("normalised", "official")}

    def files(self, data: Path) -> Files:
        root = data / self.folder
        annotations = root / "v2_annotations.json"
        images = next((root / name for name in ("images", "test2015") if (root / name).is_dir()), root / "test2015")
        return Files(
            root / "llava_vqav2_mscoco_test-dev2015.jsonl",
            annotations if annotations.is_file() else None,
            images=images,
        )

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, HumanAnswers]:
        path = files.need("annotations")
        records = index_by(self.read_envelope(path, "annotations"), lambda record: self.answer_key(record, path), path)
        references = {key: read_human_answers(record, f"question {key}", path) for key, record in records.items()}
        if files.questions is not None:
            asked = [self.answer_key(record, files.questions) for record in self.read_asked(files.questions)]
            require_same_keys(references, asked, files.questions, path)
        return references

    def read_asked(self, path: Path) -> list[Record]:
        """The questions of the official file or of LLaVA's, which is JSON lines."""
        return read_records(path) if is_json_lines(path) else self.read_envelope(path, "questions")

    def read_envelope(self, path: Path, name: str) -> list[Record]:
        """The list inside an official file `{"info": ..., name: [...]}`."""
        content = read_json(path)
        records = content.get(name) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise EvaluationError(
                f"{path}: expected an object with a list {name!r} of objects, as the official files have"
            )
        return records

    def part_of(self, reference: HumanAnswers) -> str:
        return reference.answer_type

    def answer_key(self, record: Record, path: Path) -> Key:
        return whole_identifier(record, path)

    def measure(self, references: Sequence[HumanAnswers], texts: Sequence[str], mode: str = "normalised") -> Score:
        pairs = zip(texts, references, strict=True)
        if mode == "official":
            marks = [score_official(text, humans.answers) for text, humans in pairs]
        else:
            marks = [score_normalised(text, humans.answers, normalise_vqa) for text, humans in pairs]
        metrics = means_by_type(marks, [humans.answer_type for humans in references], ANSWER_TYPES)
        constant, chance = best_constant(
            [[normalise_vqa(answer) for answer in humans.answers] for humans in references]
        )
        return Score.of_marks(
            {**metrics, "mode": mode},
            metrics["overall"],
            marks,
            chance=chance,
            chance_rule=f"always {constant!r}, the best constant answer",
        )

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write EvalAI's result file: normalised answers, and "" for ids that only the full test file beside it has."""
        texts = self.read_answers(answers, files)
        asked = [self.answer_key(record, answers) for record in read_records(files.need("questions"))]
        require_same_keys(asked, texts, answers, files.need("questions"))
        whole = files.need("questions").parent / "llava_vqav2_mscoco_test2015.jsonl"
        identifiers = [self.answer_key(record, whole) for record in read_records(whole)] if whole.is_file() else asked
        require_same_keys(identifiers, {*identifiers, *texts}, answers, whole)
        results = [
            {"question_id": key, "answer": normalise_m4c(texts[key]) if key in texts else ""} for key in identifiers
        ]
        target = out.with_suffix(".json")
        write_json(target, results, indent=None)
        return target


def is_json_lines(path: Path) -> bool:
    """Whether the first line of a file is a JSON object with a question_id of its own."""
    first = read_text(path).lstrip().split("\n", 1)[0]
    try:
        return "question_id" in json.loads(first)
    except (RecursionError, TypeError, ValueError):
        return False
