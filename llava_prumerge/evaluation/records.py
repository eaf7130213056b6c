"""Reading of question, answer and annotation files, plain or gzipped, and the join of answers to references by key."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from llava_prumerge.ground.errors import InputError

Key = Hashable
Record = dict[str, Any]
Value = TypeVar("Value")

GZIP_MAGIC = b"\x1f\x8b"
SHOWN = 5
"""How many keys an error message names before it only counts."""


class EvaluationError(InputError):
    """Files that do not belong together, or a file that is not what its place asks for."""


def find_file(path: Path) -> Path | None:
    """A file, or its gzipped form beside where it would be; None where neither is."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, decompressed when its first bytes say gzip (the name is not trusted)."""
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (OSError, EOFError, zlib.error) as error:
        raise EvaluationError(f"{path}: cannot be decompressed: {error}") from error


def read_text(path: str | Path) -> str:
    """The text of a file, plain or gzipped."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def read_json(path: str | Path) -> Any:
    """The value a JSON file holds."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path}: not JSON: {error}") from error


def read_records(path: str | Path) -> list[Record]:
    """The objects of a JSON-lines file, or of a file that is one JSON list (POPE's `.json` files are JSON lines)."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        records = read_json(path)
    else:
        records = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise EvaluationError(
                    f"{path}, line {number}: not a JSON object, the file may be cut off: {error}"
                ) from error
    wrong = next((record for record in records if not isinstance(record, dict)), None)
    if wrong is not None:
        raise EvaluationError(f"{path}: every record must be a JSON object, found {wrong!r}")
    return records


def read_one_object(path: str | Path) -> dict[str, Any] | None:
    """The object that a file is as a whole; None for a folder, a list and JSON lines, of which each is a record."""
    if Path(path).is_dir():
        return None
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError:  # JSON lines, or nothing that the caller's other reader can take either
        return None
    return content if isinstance(content, dict) and not {"question_id", "id"} & content.keys() else None


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header; an empty cell is "" and "None" or "N/A" stay text."""
    csv.field_size_limit(1 << 30)  # MMBench keeps its images, base64, in a column
    return list(csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t"))


def read_workbook(path: str | Path) -> list[dict[str, str]]:
    """Rows of a workbook's first sheet, every cell as text, an empty one ""."""
    try:
        import openpyxl
    except ImportError as error:
        raise EvaluationError(f"{path}: reading .xlsx needs openpyxl (pip install openpyxl)") from error
    book = openpyxl.load_workbook(io.BytesIO(read_bytes(path)), read_only=True)
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = [str(name) for name in next(rows, ())]
    texts = (["" if cell is None else str(cell) for cell in row] for row in rows)
    return [dict(zip_longest(header, row[: len(header)], fillvalue="")) for row in texts if any(row)]


def field(record: Mapping[str, Any], name: str, path: str | Path) -> Any:
    """A record's field, or an error that names the file and the fields there are."""
    if name not in record:
        known = ", ".join(map(str, record))
        raise EvaluationError(f"{path}: a record has no {name!r}, only {known[:160] or 'nothing'}")
    return record[name]


def text_field(record: Mapping[str, Any], name: str, path: str | Path) -> str:
    """A field that must be text: an answer of None or a number is a broken file, not a wrong answer."""
    value = field(record, name, path)
    if not isinstance(value, str):
        raise EvaluationError(f"{path}: {name!r} must be text, found {value!r} in {shorten(record)}")
    return value


def shorten(value: object, width: int = 160) -> str:
    """A value's text for a message."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


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
