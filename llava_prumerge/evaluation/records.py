"""Reading of question, answer and annotation files, plain or gzipped, and the join of answers to references by key."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from llava_prumerge.ground import reading as ground
from llava_prumerge.ground.encodings import decode_text
from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.unpacking import GZIP, check_zip, gunzip, most_unpacked

Key = Hashable
Record = dict[str, Any]
Value = TypeVar("Value")

SHOWN = 5
"""How many keys an error message names before it only counts."""


class EvaluationError(InputError):
    """Files that do not belong together, or a file that is not what its place asks for."""


def find_file(path: Path) -> Path | None:
    """A file, or its gzipped form beside where it would be; None where neither is."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, decompressed when its first bytes say gzip (the name is not trusted).

    Raises:
        EvaluationError: it cannot be read, is damaged, or has or unpacks to more bytes than may be (`ground.unpacking`).
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    with _as_evaluation_error():
        content = ground.read_bytes(path, most_unpacked())
        return gunzip(content, path) if content.startswith(GZIP) else content


@contextlib.contextmanager
def _as_evaluation_error() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise EvaluationError(str(error)) from error


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, plain or gzipped."""
    content = read_bytes(path)
    with _as_evaluation_error():
        return decode_text(content, path)


def read_json(path: str | Path) -> Any:
    """The value a JSON file holds."""
    text = read_text(path)
    with _as_evaluation_error():
        return ground.parse_json(text, path)


def read_object(path: str | Path) -> dict[str, Any]:
    """The object a JSON file holds."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: it must hold a JSON object, {{...}}, and holds {ground.kind_of(content)}")
    return content


def read_placed(path: str | Path) -> list[tuple[str, Record]]:
    """The objects of a JSON-lines file, or of a file that is one JSON list, each with its place: "FILE, line 7".

    POPE's `.json` files are JSON lines, so the name is not asked.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        with _as_evaluation_error():
            content = ground.parse_json(text, path)
        placed = [(f"{path}, record {at}", record) for at, record in enumerate(content, start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        placed = [(f"{path}, line {at}", _parse_line(line, f"{path}, line {at}")) for at, line in lines if line.strip()]
    for place, record in placed:
        if not isinstance(record, dict):
            raise EvaluationError(f"{place}: every record must be a JSON object, found {shorten(record)}")
    return placed


def _parse_line(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise EvaluationError(f"{place}: its JSON is nested too deeply") from error
    except ValueError as error:
        raise EvaluationError(f"{place}: not a JSON object, the file may be cut off: {error}") from error


def read_records(path: str | Path) -> list[Record]:
    """The objects of a JSON-lines file, or of a file that is one JSON list."""
    return [record for _, record in read_placed(path)]


def read_one_object(path: str | Path) -> dict[str, Any] | None:
    """The object that a file is as a whole; None for a folder, a list and JSON lines, of which each is a record."""
    if Path(path).is_dir():
        return None
    try:
        content = json.loads(read_text(path))
    except (RecursionError, ValueError) as error:  # JSON lines, or nothing that the caller's other reader takes either
        if isinstance(error, EvaluationError):
            raise
        return None
    return content if isinstance(content, dict) and not {"question_id", "id"} & content.keys() else None


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header; an empty cell is "" and "None" or "N/A" stay text.

    Raises:
        EvaluationError: it is no text, a quote is not closed, a row has more cells than the header, or the header names
            a column twice.
    """
    csv.field_size_limit(1 << 30)  # MMBench keeps its images, base64, in a column
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise EvaluationError(f"{path}, line {reader.line_num}: not a tab-separated table: {error}") from error
    return _named(rows[0] if rows else [], rows[1:], path)


def _named(header: Sequence[str], rows: Iterable[Sequence[str]], path: str | Path) -> list[dict[str, str]]:
    """Rows as dictionaries, short ones filled up with ""."""
    if twice := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise EvaluationError(f"{path}: the header names {name_keys(twice)} more than once")
    found = []
    for at, row in enumerate(rows, start=1):
        if any(row[len(header) :]):
            raise EvaluationError(f"{path}, row {at}: {len(row)} cells under {len(header)} column names")
        found.append(dict(zip_longest(header, row[: len(header)], fillvalue="")))
    return found


def read_workbook(path: str | Path) -> list[dict[str, str]]:
    """Rows of a workbook's first sheet, every cell as text, an empty one ""."""
    try:
        import openpyxl
    except ImportError as error:
        raise EvaluationError(f"{path}: reading .xlsx needs openpyxl (pip install openpyxl)") from error
    content = read_bytes(path)
    with _as_evaluation_error():
        check_zip(content, path)
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True).worksheets[0]
        sheet.reset_dimensions()  # what it says of its size is not to be believed
        texts = [["" if cell is None else str(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # openpyxl lets out whatever a damaged part makes it meet
        raise EvaluationError(f"{path}: cannot be read as a workbook ({type(error).__name__}: {error})") from error
    return _named(texts[0] if texts else [], [row for row in texts[1:] if any(row)], path)


def field(record: Any, name: str, path: str | Path) -> Any:
    """A record's field, or an error that names the file and the fields there are."""
    if not isinstance(record, Mapping):
        raise EvaluationError(f"{path}: expected an object with {name!r}, found {shorten(record)}")
    if name not in record:
        known = ", ".join(map(str, record))
        raise EvaluationError(f"{path}: a record has no {name!r}, only {known[:160] or 'nothing'}")
    return record[name]


def text_field(record: Any, name: str, path: str | Path) -> str:
    """A field that must be text: an answer of None or a number is a broken file, not a wrong answer."""
    value = field(record, name, path)
    if not isinstance(value, str):
        raise EvaluationError(f"{path}: {name!r} must be text, found {shorten(value)} in {shorten(record)}")
    return value


def list_field(record: Any, name: str, path: str | Path) -> list[Any]:
    """A field that must be a list."""
    value = field(record, name, path)
    if not isinstance(value, list):
        raise EvaluationError(f"{path}: {name!r} must be a list, found {shorten(value)}")
    return value


def object_field(record: Any, name: str, path: str | Path) -> dict[str, Any]:
    """A field that must be an object."""
    value = field(record, name, path)
    if not isinstance(value, dict):
        raise EvaluationError(f"{path}: {name!r} must be an object, found {shorten(value)}")
    return value


def objects(value: Any, path: str | Path, what: str) -> list[Record]:
    """A list of objects; `what` says in the message what the file should hold."""
    if not isinstance(value, list):
        raise EvaluationError(f"{path}: expected {what}, found {ground.kind_of(value)}")
    for at, one in enumerate(value, start=1):
        if not isinstance(one, dict):
            raise EvaluationError(f"{path}, entry {at}: expected an object, found {shorten(one)}")
    return value


def objects_by_id(value: Any, path: str | Path, what: str) -> dict[str, Record]:
    """An object of objects by id; `what` says in the message what the file should hold."""
    if not isinstance(value, dict):
        raise EvaluationError(f"{path}: expected {what}, found {ground.kind_of(value)}")
    for key, one in value.items():
        if not isinstance(one, dict):
            raise EvaluationError(f"{path}: {shorten(key)} must be an object, found {shorten(one)}")
    return value


def bounded_number(value: Any, path: str | Path, what: str, least: float, most: float) -> float:
    """A number within bounds; text, true, false, NaN and infinities are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise EvaluationError(f"{path}: {what} must be a number from {least:g} to {most:g}, found {shorten(value)}")
    return float(value)


def identifier(record: Any, path: str | Path, name: str = "question_id") -> str:
    """A record's id as text; it must be text or a whole number."""
    value = field(record, name, path)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise EvaluationError(f"{path}: {name!r} must be text or a whole number, found {shorten(value)}")
    return str(value)


def whole_identifier(record: Any, path: str | Path, name: str = "question_id") -> int:
    """A record's id that must be a whole number, written as one or as text."""
    text = identifier(record, path, name)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise EvaluationError(f"{path}: {name} {shorten(text)} is not a whole number")
    return int(text)


def human_answer(value: Any, path: str | Path) -> str:
    """What a person answered: text, or a number, which stands for its digits."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise EvaluationError(f"{path}: a human answer must be text or a number, found {shorten(value)}")
    return str(value)


def shorten(value: object, width: int = 160) -> str:
    """A value's text for a message."""
    return shown(value, width)


def name_keys(keys: Iterable[Key]) -> str:
    """How many keys there are, and the first few of them."""
    keys = list(keys)
    listed = ", ".join(shorten(key) for key in keys[:SHOWN])
    return f"{len(keys)} ({listed}{', ...' if len(keys) > SHOWN else ''})"


def index_by(records: Iterable[Value], key: Callable[[Value], Key], path: str | Path) -> dict[Key, Value]:
    """Records by key; the same key twice is an error."""
    records = list(records)
    keys = [key(record) for record in records]
    twice = [name for name, count in Counter(keys).items() if count > 1]
    if twice:
        raise EvaluationError(f"{path}: duplicate entries for {name_keys(twice)}")
    return dict(zip(keys, records, strict=True))


def require_same_keys(expected: Iterable[Key], found: Iterable[Key], path: str | Path, against: str | Path) -> None:
    """Refuse a file that answers too few, too many or other questions than it must.

    Raises:
        EvaluationError: naming how many keys are missing or unknown, and the first few of each.
    """
    expected, found = list(expected), list(found)
    wanted, given = set(expected), set(found)
    missing = [key for key in expected if key not in given]
    unknown = [key for key in found if key not in wanted]
    problems = [f"missing {name_keys(missing)}"] if missing else []
    problems += [f"not asked {name_keys(unknown)}"] if unknown else []
    if problems:
        raise EvaluationError(
            f"{path}: {len(found)} entries do not match the {len(expected)} of {against}: {'; '.join(problems)}"
        )
