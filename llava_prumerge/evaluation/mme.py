"""MME: two yes/no questions per image in 14 subtasks; perception (10, at most 2000) and cognition (4, at most 800).

Rules: the official calculation script. A subtask scores 100 x (share of right answers + share of images with both
right). Questions are grouped by image name, where the original takes consecutive lines. The paper's number is
perception alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question, read_questions, without_suffix
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    find_file,
    identifier,
    index_by,
    name_keys,
    read_text,
    require_same_keys,
    text_field,
)
from llava_prumerge.evaluation.results import Score, normal

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES_OR_NO = "Please answer yes or no."
PREFIX = 4
"""Letters of an answer in which the official script looks for yes or no."""


@dataclass(frozen=True)
class Truth:
    """The right answer to one question about one image."""

    subtask: str
    image: str
    answer: str


def read_answer(text: str) -> str:
    """The official reading: "yes" or "no" as a whole or in the first four characters ("yes" first), else "other"."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:PREFIX]), "other")


def identify(subtask: str, image: str, question: str) -> tuple[str, str, str]:
    """A question's key: LLaVA has its own sentence for the yes-or-no one, and result files say `x.txt` for `x.jpg`."""
    return subtask, PurePosixPath(image).stem, without_suffix(without_suffix(question), YES_OR_NO)


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """Rows of an official tab-separated file, which has no header and no quoting."""
    rows = [line.split("\t") for line in read_text(path).split("\n") if line.strip()]
    wrong = next((at for at, row in enumerate(rows, start=1) if len(row) != columns), None)
    if wrong is not None:
        raise EvaluationError(
            f"{path}: row {wrong} has {len(rows[wrong - 1])} tab-separated fields, not {columns}; "
            "an answer may hold a tab or a line break"
        )
    return rows


def list_subtasks(folder: Path) -> dict[str, Path]:
    """The subtasks of a folder: `<subtask>.txt` files, or the release's `<subtask>` folders."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    files = {name: find_file(folder / f"{name}.txt") for name in (*PERCEPTION, *COGNITION)}
    found = {name: file for name, file in files.items() if file is not None}
    if not found:
        found = {name: folder / name for name in (*PERCEPTION, *COGNITION) if (folder / name).is_dir()}
    if not found:
        raise EvaluationError(f"{folder}: no subtask files such as {PERCEPTION[0]}.txt")
    return found


def release_rows(folder: Path) -> list[list[str]]:
    """Image, question and answer of a subtask as released: `<image>.txt`, beside the image or in its own folder."""
    inner = folder / "questions_answers_YN"
    texts = sorted((inner if inner.is_dir() else folder).glob("*.txt"))
    return [[path.name, *row] for path in texts for row in read_rows(path, 2)]


def read_truth(folder: Path) -> dict[Key, Truth]:
    """The ground truth of all subtasks in a folder."""
    rows = []
    for subtask, path in list_subtasks(folder).items():
        rows += [(subtask, row) for row in (read_rows(path, 3) if path.is_file() else release_rows(path))]
    return truth_by_key(rows, folder)


def truth_by_key(rows: Iterable[tuple[str, Sequence[str]]], path: Path) -> dict[Key, Truth]:
    """Truth by question from rows of subtask and (image, question, answer, ...); an image must have two questions."""
    indexed = index_by(rows, lambda row: identify(row[0], row[1][0], row[1][1]), path)
    truths = {key: Truth(key[0], key[1], row[2].strip().lower()) for key, (_, row) in indexed.items()}
    if wrong := [key for key, truth in truths.items() if truth.answer not in ("yes", "no")]:
        raise EvaluationError(
            f"{path}: the right answer must be yes or no, not {truths[wrong[0]].answer!r} for {wrong[0]}"
        )
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for truth in truths.values():
        counts[truth.subtask, truth.image] += 1
    if uneven := [image for image, count in counts.items() if count != 2]:
        raise EvaluationError(f"{path}: every image must have two questions, not so {name_keys(uneven)}")
    return truths


def is_pair_right(hits: Sequence[bool]) -> bool:
    """Whether both questions of an image are answered right (a limited run may have asked one alone)."""
    return len(hits) == 2 and all(hits)


def score_subtask(images: Sequence[Sequence[bool]]) -> float:
    """100 x share of right answers + 100 x share of images with both right, added in the official script's order."""
    accuracy = sum(map(sum, images)) / sum(map(len, images))
    return accuracy * 100 + sum(map(is_pair_right, images)) / len(images) * 100


class Mme(Benchmark):
    """Perception score."""

    name = "mme"
    title = "MME"
    headline = "perception"
    folder = "MME"
    maximum = 2000.0

    def files(self, data: Path) -> Files:
        root = data / self.folder
        truth, images = root / "ground_truth", root / "MME_Benchmark_release_version"
        return Files(root / "llava_mme.jsonl", truth if truth.is_dir() else images, images=images)

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, Truth]:
        truths = read_truth(files.need("annotations"))
        if files.questions is not None:
            records = (
                {"question_id": question.id, "prompt": question.prompt} for question in read_questions(files.questions)
            )
            asked = index_by(
                (self.answer_key(record, files.questions) for record in records), lambda key: key, files.questions
            )
            require_same_keys(truths, asked, files.questions, files.need("annotations"))
        return truths

    def part_of(self, reference: Truth) -> str:
        return reference.subtask

    def answer_key(self, record: Record, path: Path) -> Key:
        image = identifier(record, path)
        return identify(image.split("/")[0], image, text_field(record, "prompt", path))

    def score(self, answers: Path, files: Files, only: Iterable[Question] | None = None, **options: str) -> Score:
        if not answers.is_dir():
            return super().score(answers, files, only, **options)
        found = list_subtasks(answers)
        if files.annotations is None and (missing := [name for name in (*PERCEPTION, *COGNITION) if name not in found]):
            raise EvaluationError(
                f"{answers}: no results for {', '.join(missing)}; give --annotations if these are not to be scored"
            )
        rows = [(subtask, row) for subtask, path in found.items() for row in read_rows(path, 4)]
        truths = truth_by_key(rows, answers)
        if files.annotations is not None:
            expected = read_truth(files.annotations)
            require_same_keys(expected, truths, answers, files.annotations)
            if other := [key for key, truth in truths.items() if truth.answer != expected[key].answer]:
                raise EvaluationError(
                    f"{answers}: other right answers than {files.annotations} has for {name_keys(other)}"
                )
        texts = {identify(subtask, row[0], row[1]): row[3] for subtask, row in rows}
        return self.measure(list(truths.values()), [texts[key] for key in truths])

    def measure(self, references: Sequence[Truth], texts: Sequence[str], **options: str) -> Score:
        read = [read_answer(text) for text in texts]
        right = [said == truth.answer for said, truth in zip(read, references, strict=True)]
        images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for hit, truth in zip(right, references, strict=True):
            images[truth.subtask][truth.image].append(hit)
        scores = {subtask: score_subtask(list(found.values())) for subtask, found in images.items()}
        metrics: dict[str, Any] = {
            name: sum(scores[subtask] for subtask in group if subtask in scores)
            for name, group in (("perception", PERCEPTION), ("cognition", COGNITION))
        }
        metrics |= {subtask: scores[subtask] for subtask in (*PERCEPTION, *COGNITION) if subtask in scores}
        perception = [
            [100 * (sum(hits) / len(hits) + is_pair_right(hits)) for hits in images[subtask].values()]
            for subtask in PERCEPTION
            if subtask in images
        ]
        metrics["other"] = read.count("other")
        metrics["subtasks"] = len(scores)
        return Score(
            metrics=metrics,
            headline=metrics["perception"],
            interval=normal(perception, self.maximum) if perception else (0.0, self.maximum),
            interval_rule="normal, over images",
            n=2 * sum(len(values) for values in perception),
            chance=75.0 * len(perception),
            chance_rule="a coin: 50 + 25 per subtask",
            marks=[float(hit) for hit in right],
        )
