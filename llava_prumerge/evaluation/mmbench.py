"""MMBench (dev, 2023-07-12): multiple choice asked once per rotation of its options.

Rules: CircularEval, a question counts when the answers to all of its rotations are right (rows whose index differs by
multiples of a million are rotations of each other); vanilla counts the unrotated rows alone. Letters are read by
VLMEvalKit's rules, without a language model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llava_prumerge.evaluation.benchmark import OPTION_LETTER, Benchmark, Files, Question, without_markers
from llava_prumerge.evaluation.options import find_option
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    field,
    index_by,
    read_bytes,
    read_records,
    read_table,
    read_workbook,
    require_same_keys,
    shorten,
    text_field,
    whole_identifier,
)
from llava_prumerge.evaluation.results import Score

LETTERS = "ABCD"
ROTATION = 1_000_000
WORKBOOK_MAGIC = b"PK"
NOT_UPLOADED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6

# What pandas, with which LLaVA reads the file, takes for an empty cell; LLaVA adds any spelling of "none" and "nan".
EMPTY_CELLS = frozenset(
    [
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "n/a",
        "null",
    ]
    + ["-NaN", "-nan", "NaN", "nan", "None"]
)


def is_empty(cell: str) -> bool:
    """Whether LLaVA's prompt code sees nothing in a cell."""
    return cell in EMPTY_CELLS or cell.lower() in ("none", "nan")


@dataclass(frozen=True)
class Row:
    """One rotation of one question."""

    index: int
    answer: str
    options: Mapping[str, str]


def read_index(record: Mapping[str, str], path: Path) -> int:
    """A row's index, which pandas may have written as 7.0."""
    index = field(record, "index", path)
    found = re.fullmatch(r"([0-9]{1,18})(\.0*)?", str(index))
    if found is None:
        raise EvaluationError(f"{path}: index {shorten(index)} is not a whole number")
    return int(found[1])


def read_row(record: Mapping[str, str], path: Path) -> Row:
    """A rotation from a row of the official table or of an upload."""
    number, answer = read_index(record, path), str(field(record, "answer", path)).strip()
    if len(answer) != 1 or answer not in LETTERS:
        raise EvaluationError(f"{path}: the answer {answer!r} of index {number} is not one of {', '.join(LETTERS)}")
    # An upload written by pandas has lost options such as "None"; the right answer is an option all the same.
    options = {letter: record.get(letter) or "" for letter in LETTERS if record.get(letter) or letter == answer}
    return Row(number, answer, options)


class MmBench(Benchmark):
    """CircularEval accuracy over question groups."""

    name = "mmbench"
    title = "MMB"
    headline = "circular"
    folder = "mmbench"
    max_new_tokens = 1024
    suffix: ClassVar[str] = OPTION_LETTER
    """What follows the options: asks for the letter."""

    def files(self, data: Path) -> Files:
        table = data / self.folder / "mmbench_dev_20230712.tsv"
        return Files(table, table)

    def questions(self, files: Files) -> list[Question]:
        path = files.need("questions")
        rows = read_table(path)
        pictures = {field(row, "index", path): field(row, "image", path) for row in rows}
        questions = []
        for at, row in enumerate(rows, start=1):
            index, place = read_index(row, path), f"{path}, row {at} (index {shorten(row['index'], 40)})"
            options = []
            for letter in LETTERS:
                if is_empty(row.get(letter) or ""):
                    break
                options.append(row[letter])
            hint = row.get("hint") or ""
            lines = ([] if is_empty(hint) else [hint]) + [field(row, "question", path)]
            prompt = "\n".join(
                lines + [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
            )
            picture = (
                row["image"] if len(row["image"]) > 64 else pictures.get(row["image"], row["image"])
            )  # may name another row's
            extra = {"round_id": 0, "options": options, "option_char": list(LETTERS[: len(options)])}
            text = f"{without_markers(prompt, True, place)}\n{self.suffix}"
            questions.append(Question(index, prompt, text, embedded=picture, extra=extra, place=place))
        return questions

    def references(self, files: Files) -> dict[Key, Row]:
        path = files.need("annotations")
        return index_by((read_row(record, path) for record in read_table(path)), lambda row: row.index, path)

    def answer_key(self, record: Record, path: Path) -> Key:
        if record.get("round_id", 0) != 0:
            raise EvaluationError(
                f"{path}: {shorten(record)} rotates options itself (--all-rounds); the table's rows are the rotations"
            )
        return whole_identifier(record, path)

    def score(self, answers: Path, files: Files, only: Iterable[Question] | None = None, **options: str) -> Score:
        """Score an answer file against the table, or an upload workbook, which holds the right answers itself."""
        if not is_workbook(answers):
            return super().score(answers, files, only, **options)
        records = read_workbook(answers)
        rows = index_by((read_row(record, answers) for record in records), lambda row: row.index, answers)
        texts = [str(field(record, "prediction", answers)) for record in records]
        if files.annotations is None:
            return self.measure(list(rows.values()), texts)
        references = self.references(files)
        require_same_keys(references, rows, answers, files.annotations)
        by_index = dict(zip(rows, texts, strict=True))
        return self.measure(list(references.values()), [by_index[index] for index in references])

    def measure(self, references: Sequence[Row], texts: Sequence[str], **options: str) -> Score:
        chosen = [find_option(text, row.options) for text, row in zip(texts, references, strict=True)]
        right = [letter == row.answer for letter, row in zip(chosen, references, strict=True)]
        groups: dict[int, list[tuple[Row, bool]]] = defaultdict(list)
        for row, hit in zip(references, right, strict=True):
            groups[row.index % ROTATION].append((row, hit))
        circular = [all(hit for _, hit in group) for group in groups.values()]
        plain = [hit for row, hit in zip(references, right, strict=True) if row.index < ROTATION]
        blind = [len(group[0][0].options) ** -len(group) for group in groups.values()]
        metrics = {
            "circular": 100 * sum(circular) / len(circular),
            "circular_correct": sum(circular),
            "circular_total": len(circular),
            "vanilla": 100 * sum(plain) / len(plain) if plain else 0.0,
            "vanilla_correct": sum(plain),
            "vanilla_total": len(plain),
            "failed": chosen.count(None),
            "incomplete_groups": sum(len(group) != len(group[0][0].options) for group in groups.values()),
        }
        return Score.of_marks(
            metrics,
            metrics["circular"],
            right,
            over=circular,
            chance=100 * sum(blind) / len(blind),
            chance_rule="a random option in every rotation",
        )

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write the workbook that OpenCompass' server takes: the table less six columns, `prediction` the seventh."""
        path = files.need("questions")
        records = index_by(read_records(answers), lambda record: self.answer_key(record, answers), answers)
        rows = index_by(read_table(path), lambda row: read_index(row, path), path)
        require_same_keys(rows, records, answers, path)
        columns = [name for name in next(iter(rows.values()), ()) if name not in NOT_UPLOADED]
        columns.insert(PREDICTION_COLUMN, "prediction")
        table = [
            [
                index
                if name == "index"
                else text_field(records[index], "text", answers)
                if name == "prediction"
                else row[name]
                for name in columns
            ]
            for index, row in rows.items()
        ]
        return write_workbook(out.with_suffix(".xlsx"), columns, table)


def is_workbook(path: Path) -> bool:
    """Whether a file is an .xlsx, by its first bytes."""
    return read_bytes(path).startswith(WORKBOOK_MAGIC)


def write_workbook(path: Path, columns: Sequence[str], rows: Sequence[Sequence[int | str]]) -> Path:
    """Write a workbook of one sheet; text stays text, also where it starts like a formula."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise EvaluationError(f"{path}: writing it needs openpyxl (pip install openpyxl)") from error

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(list(columns))
    for row in rows:
        cells = [
            WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value)
            for value in row
        ]
        for cell, value in zip(cells, row, strict=True):
            if isinstance(value, str):
                cell.data_type = "s"
        sheet.append([cell if cell.value != "" else None for cell in cells])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path
