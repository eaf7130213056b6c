"""MMMU (validation): college-level questions of 30 subjects, 847 with options and 53 with short answers.

Rules: the official parser and scorer. An answer from which no option can be read gets a random one there (seed 42, in
the order of subjects): `fallback=official` does that, `fallback=wrong` (the default) counts it as wrong. The prompt is
that of the official LLaVA-1.5 run; the first image alone is shown, and answers are greedy, where that run sampled.
Compare methods by other benchmarks: this one hardly depends on the image.
"""

from __future__ import annotations

import ast
import base64
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import (
    OPTION_LETTER,
    SHORT_ANSWER,
    Benchmark,
    Files,
    Question,
    without_markers,
)
from llava_prumerge.evaluation.mmmu_answers import as_numbers_and_texts, is_open_answer_right, read_choice
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    field,
    identifier,
    index_by,
    objects,
    read_one_object,
    read_records,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.unpacking import UnpackedBytes

SEED = 42
MULTIPLE_CHOICE = "multiple-choice"
SHORT = ("open", "short-answer")
COLUMNS = ("id", "question", "question_type", "options", "index2ans", "answer", "image_1")
BATCH = 16
LONGEST_LIST = 100_000
"""Letters of a list that is written as text."""
LETTERS = "ABCDEFGHI"
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}


@dataclass(frozen=True)
class Problem:
    """One question's truth; `options` by letter, empty for a short answer; `parsed`: answers are letters already."""

    subject: str
    truth: tuple[str, ...]
    options: Mapping[str, str]
    is_open: bool
    parsed: bool = False


def subject_of(identifier: str) -> str:
    """`validation_Art_Theory_7` -> `Art_Theory`"""
    return "_".join(identifier.split("_")[1:-1])


def as_list(value: object, path: Path, identifier: str) -> list[str]:
    """A list, or a list written as text, as the data set has its options."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value[:LONGEST_LIST])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise EvaluationError(f"{path}: the list of {shorten(identifier)} is none: {shorten(value)}") from error
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise EvaluationError(f"{path}: {shorten(identifier)}: expected texts or numbers, found {shorten(item)}")
    return [str(item) for item in values]


def asks_short_answer(record: Record, path: Path) -> bool:
    """Whether a question has no options to choose from."""
    kind = record.get("question_type")
    if kind not in (None, MULTIPLE_CHOICE, *SHORT):
        listed = ", ".join((MULTIPLE_CHOICE, *SHORT))
        raise EvaluationError(f"{path}: question_type must be one of {listed}, found {shorten(kind)}")
    return kind in SHORT


def read_rows(folder: Path) -> list[Record]:
    """Rows of the validation split: `*.parquet` files as on the Hub (one per subject), or one JSON lines file.

    Raises:
        EvaluationError: nothing is there, or a file cannot be read.
    """
    if folder.is_file():
        return read_records(folder)
    files = sorted(folder.rglob("validation*.parquet"))
    if not files:
        raise EvaluationError(f"{folder}: no validation*.parquet below it, as MMMU/MMMU on the Hub has")
    unpacked = UnpackedBytes()
    return [row for path in files for row in read_parquet(path, unpacked)]


def read_parquet(path: Path, unpacked: UnpackedBytes) -> list[Record]:
    """The rows of a table, a few at a time: a dictionary page makes much out of little, and the limit holds for what it makes.

    Args:
        unpacked: counts the bytes of all tables of a reading.

    Raises:
        EvaluationError: it cannot be read, or all unpack to more than the limit (`ground.unpacking`).
    """
    rows: list[Record] = []
    try:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as table:
            groups = (table.metadata.row_group(at) for at in range(table.metadata.num_row_groups))
            unpacked.check(sum(group.total_byte_size for group in groups), path)
            columns = [name for name in COLUMNS if name in table.schema_arrow.names]
            for batch in table.iter_batches(BATCH, columns=columns):
                unpacked.add(batch.nbytes, path)
                rows += batch.to_pylist()
    except FileError as error:
        raise EvaluationError(str(error)) from error
    except ImportError as error:
        raise EvaluationError(f"{path}: reading it needs pyarrow (pip install pyarrow)") from error
    except Exception as error:  # pyarrow lets out whatever a damaged part makes it meet
        raise EvaluationError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error
    return rows


class Mmmu(Benchmark):
    """Accuracy over all 900 questions of the validation split."""

    name = "mmmu"
    title = "MMMU"
    headline = "accuracy"
    folder = "MMMU"
    answer_field = "response"
    options = {"fallback": ("wrong", "official")}

    def files(self, data: Path) -> Files:
        root = data / self.folder
        return Files(root, root)

    def questions(self, files: Files) -> list[Question]:
        path = files.need("questions")
        return [self.read_question(row, path) for row in read_rows(path)]

    def read_question(self, row: Record, path: Path) -> Question:
        """A row as the official LLaVA-1.5 run asks it."""
        own, question = text_field(row, "id", path), text_field(row, "question", path)
        options = [] if asks_short_answer(row, path) else as_list(row.get("options") or [], path, own)
        listed = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options))
        text = f"{question}\n{listed}\n{OPTION_LETTER}" if options else f"{question}\n{SHORT_ANSWER}"
        image, place = row.get("image_1"), f"{path}, {shorten(own)}"
        content = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(content, bytes):
            content = base64.b64encode(content).decode()
        if not isinstance(content, str | None):
            raise EvaluationError(f"{place}: image_1 must hold an image, found {shorten(image)}")
        return Question(own, text, without_markers(text, bool(content), place), None, content or None, place=place)

    def references(self, files: Files) -> dict[Key, Problem]:
        path = files.need("annotations")
        content = read_one_object(path)
        if content is not None:
            return {key: self.read_truth(key, record, path) for key, record in content.items()}
        rows = index_by(read_rows(path), lambda row: text_field(row, "id", path), path)
        return {key: self.read_problem(row, path) for key, row in rows.items()}

    def read_truth(self, identifier: str, record: Any, path: Path) -> Problem:
        """An entry of the official answer_dict_val.json, for files whose answers are letters already."""
        if not isinstance(record, dict):
            told = f"must have question_type and ground_truth, found {shorten(record)}"
            raise EvaluationError(f"{path}: {shorten(identifier)} {told}")
        truth = tuple(as_list(field(record, "ground_truth", path), path, identifier))
        return Problem(subject_of(identifier), truth, {}, asks_short_answer(record, path), parsed=True)

    def read_problem(self, row: Record, path: Path) -> Problem:
        """A row of the data set, or a record of the official output files."""
        own, is_open = text_field(row, "id", path), asks_short_answer(row, path)
        options = row.get("index2ans")
        if isinstance(options, dict):
            options = dict(zip(options, as_list(list(options.values()), path, own)))
        else:
            options = {} if is_open else dict(zip(LETTERS, as_list(row.get("options") or [], path, own)))
        truth = tuple(as_list(field(row, "answer", path), path, own))
        if not is_open and not set(truth) <= set(options):
            told = (
                f"the answer {shorten(truth)} is none of its options {', '.join(map(str, options)) or '(it has none)'}"
            )
            raise EvaluationError(f"{path}: {shorten(own)}: {told[:300]}")
        return Problem(subject_of(own), truth, options, is_open)

    def part_of(self, reference: Problem) -> str:
        return reference.subject

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path, "question_id" if "question_id" in record else "id")

    def score(self, answers: Path, files: Files, only: Any = None, **options: str) -> Score:
        """Score an answer file; the official output files ({subject: records with `response`}) hold the truth too."""
        content = read_one_object(answers)
        if content and all(isinstance(value, list) for value in content.values()):
            records = [
                record for subject in sorted(content) for record in objects(content[subject], answers, "records")
            ]
            rows = index_by(records, lambda row: text_field(row, "id", answers), answers)
            problems = [self.read_problem(row, answers) for row in rows.values()]
            return self.measure(problems, [text_field(row, "response", answers) for row in rows.values()], **options)
        return super().score(answers, files, only, **options)

    def read_answers(self, path: Path, files: Files) -> dict[Key, str]:
        """Answers by id, of an answer file or of an official file {id: answer}."""
        content = read_one_object(path)
        if content is not None:
            return {
                key: value if isinstance(value, str) else str(as_list(value, path, key))
                for key, value in content.items()
            }
        return super().read_answers(path, files)

    def measure(self, references: Sequence[Problem], texts: Sequence[str], fallback: str = "wrong") -> Score:
        drawn = random.Random(SEED)
        order = sorted(range(len(references)), key=lambda at: references[at].subject)  # stable: file order inside
        right, unread = [False] * len(references), 0
        for at in order:
            problem, text = references[at], texts[at]
            if problem.is_open:
                right[at] = is_open_answer_right(as_numbers_and_texts(text), problem.truth)
                continue
            letter = text if problem.parsed else read_choice(text, problem.options)
            if letter is None:
                unread += 1
                letter = drawn.choice(list(problem.options)) if fallback == "official" and problem.options else None
            right[at] = letter in problem.truth
        hits: dict[str, list[bool]] = defaultdict(list)
        for problem, hit in zip(references, right, strict=True):
            hits[problem.subject].append(hit)
        disciplines = {
            name: [hit for subject in subjects for hit in hits.get(subject, [])]
            for name, subjects in DISCIPLINES.items()
        }
        share = 100 * sum(right) / len(right)
        metrics: dict[str, Any] = {"accuracy": share, "correct": sum(right), "unread": unread, "fallback": fallback}
        for kind, is_open in (("multiple_choice", False), ("open", True)):
            chosen = [hit for hit, problem in zip(right, references, strict=True) if problem.is_open == is_open]
            metrics |= {kind: 100 * sum(chosen) / len(chosen) if chosen else 0.0, f"{kind}_n": len(chosen)}
        metrics["discipline"] = {name: 100 * sum(found) / len(found) for name, found in disciplines.items() if found}
        metrics["subject"] = {name: 100 * sum(found) / len(found) for name, found in sorted(hits.items())}
        blind = [0.0 if problem.is_open or not problem.options else 1 / len(problem.options) for problem in references]
        return Score.of_marks(
            metrics,
            share,
            right,
            chance=100 * sum(blind) / len(blind),
            chance_rule="a random option; nothing for short answers",
        )
