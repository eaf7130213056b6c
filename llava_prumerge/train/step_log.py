"""Logs of a run, one JSON object a line and each of a step: added to as steps are taken, cut back where a run resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_prumerge.ground.files import write_bytes
from llava_prumerge.ground.json_lines import append_json_lines, read_json_lines


def add_lines(path: Path, step: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records of a step."""
    append_json_lines(path, [{"step": step, **record} for record in records])


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without a last line that was cut off; none where there is no file."""
    return [record for _, record in read_json_lines(path, cut_off=True)] if path.is_file() else []


def drop_later_lines(path: Path, step: int) -> None:
    """Remove the records of steps that a resumed run is about to repeat, and lines that are not whole."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and is_before(line, step)]
    if len(kept) < len(lines):
        write_bytes(path, b"".join(kept))


def is_before(line: bytes, step: int) -> bool:
    """Whether a line is whole and of a step up to `step`."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
