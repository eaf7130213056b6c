"""Logs of a run, one JSON object a line and each of a step: added to as steps are taken, cut back where a run resumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_prumerge.ground.files import write_bytes
from llava_prumerge.ground.json_lines import append_json_lines

logger = logging.getLogger(__name__)


def add_lines(path: Path, step: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records of a step."""
    append_json_lines(path, [{"step": step, **record} for record in records])


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without lines that are not whole; none where there is no file."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [record for line in lines if (record := _parse(line)) is not None]


def drop_later_lines(path: Path, step: int) -> None:
    """Remove the records of steps that a resumed run is about to repeat, and lines that are not whole."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [(line, record) for line in lines if line.endswith(b"\n") and (record := _parse(line)) is not None]
    kept = [line for line, record in whole if record["step"] <= step]
    if torn := len(lines) - len(whole):
        logger.warning("%s: %d line%s not whole, passed over", path, torn, " is" if torn == 1 else "s are")
    if len(kept) < len(lines):
        write_bytes(path, b"".join(kept))


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's record; None where it is none of a step."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
