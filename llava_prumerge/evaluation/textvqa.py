"""TextVQA (validation 0.5.1): questions about printed words, OCR tokens in the prompt; accuracy against ten humans.

Rules: M4C's evaluator as LLaVA uses it. LLaVA's question_id is the image's id and repeats, so an answer is joined by
image and question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question, read_questions
from llava_prumerge.evaluation.normalise import best_constant, normalise_m4c, score_normalised
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    human_answer,
    identifier,
    index_by,
    list_field,
    read_json,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score

OCR_MARK = "Reference OCR token:"


def asked_question(prompt: str) -> str | None:
    """The question in one of LLaVA's three prompt forms, in lower case; None for any other form."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return found.group(1).lower() if found else None
    if OCR_MARK in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR_MARK) else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


class TextVqa(Benchmark):
    """Mean accuracy over all questions, M4C's normal form."""

    name = "textvqa"
    title = "VQA-T"
    headline = "accuracy"
    folder = "textvqa"

    def files(self, data: Path) -> Files:
        root = data / self.folder
        return Files(
            root / "llava_textvqa_val_v051_ocr.jsonl", root / "TextVQA_0.5.1_val.json", images=root / "train_images"
        )

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, list[str]]:
        path = files.need("annotations")
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise EvaluationError(f"{path}: expected an object with a list 'data', as TextVQA_0.5.1_val.json has")
        records = index_by(
            content["data"], lambda r: (identifier(r, path, "image_id"), text_field(r, "question", path).lower()), path
        )
        for key, record in records.items():
            if len(list_field(record, "answers", path)) != 10:
                raise EvaluationError(
                    f"{path}: {shorten(key)} has {len(record['answers'])} answers, M4C's rule is for 10"
                )
        return {key: [human_answer(one, path) for one in record["answers"]] for key, record in records.items()}

    def answer_key(self, record: Record, path: Path) -> Key:
        prompt = text_field(record, "prompt", path)
        question = asked_question(prompt)
        if question is None:
            raise EvaluationError(
                f"{path}: no question can be read from the prompt {shorten(prompt)}; see LLaVA's three forms"
            )
        return identifier(record, path), question

    def measure(self, references: Sequence[list[str]], texts: Sequence[str], **options: str) -> Score:
        marks = [score_normalised(text, human, normalise_m4c) for text, human in zip(texts, references, strict=True)]
        accuracy = 100 * math.fsum(marks) / len(marks)
        constant, chance = best_constant([[normalise_m4c(answer) for answer in human] for human in references])
        return Score.of_marks(
            {"accuracy": accuracy},
            accuracy,
            marks,
            chance=chance,
            chance_rule=f"always {constant!r}, the best constant answer",
        )
