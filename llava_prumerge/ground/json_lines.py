"""JSON lines: one object a line, read a line at a time, written whole or added to; every error names file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from llava_prumerge.ground.encodings import decode_text
from llava_prumerge.ground.errors import AnyPath, FileError, naming
from llava_prumerge.ground.files import whole_file
from llava_prumerge.ground.reading import kind_of

LONGEST_LINE = 1 << 28
"""Bytes a line may have. The largest honest lines carry an image in base64."""


def read_json_lines(
    path: AnyPath, *, cut_off: bool = False, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, each with its line's number, counted from 1. Blank lines are passed over.

    Args:
        path: the file; UTF-8, with or without a byte order mark.
        cut_off: a last line that has no line break is passed over: a killed writer left it.
        longest: bytes a line may have; no more than one line is held in memory.

    Raises:
        FileError: it cannot be read, or a line is not an object in JSON; what follows that line was not looked at.
    """
    with naming(path, "cannot be read"), open(path, "rb") as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise FileError(path, f"line {number}: it is longer than the {longest:,} bytes that are accepted here")
            if cut_off and not line.endswith(b"\n"):
                return
            if value := _parse(line, number, path):
                yield number, value[0]


def _parse(line: bytes, number: int, path: AnyPath) -> tuple[dict[str, Any]] | None:
    if not line.strip():
        return None
    text = decode_text(line, path, line=number)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise FileError(path, f"line {number}: its JSON is nested too deeply") from error
    except ValueError as error:
        raise FileError(path, f"line {number}: not a JSON object, the file may be cut off: {error}") from error
    if not isinstance(value, dict):
        raise FileError(
            path, f"line {number}: each line must hold a JSON object, {{...}}, this one holds {kind_of(value)}"
        )
    return (value,)


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line with its line break; in ASCII, so that no reader takes a character in it for a line's end."""
    return json.dumps(record).encode() + b"\n"


def write_json_lines(path: AnyPath, records: Iterable[Mapping[str, Any]], *, sync: bool = True) -> int:
    """Write a file of records, whole or not at all; they may come one by one. -> their number

    Raises:
        FileError: it cannot be written.
        TypeError, ValueError: a record is nothing that JSON can hold; the file is as before.
    """
    count = 0
    with whole_file(path, sync=sync) as file:
        for record in records:
            file.write(json_line(record))
            count += 1
    return count


def append_json_lines(path: AnyPath, records: Iterable[Mapping[str, Any]], *, sync: bool = False) -> None:
    """Add records at the end of a file that one process writes; folders that are missing are made.

    A line that a kill has cut off is removed first, so that the new ones do not run into it. The lines go to the system
    in one write; if it takes only a part of them (the disk is full), that part is taken back.

    Args:
        path: the file.
        records: what to add.
        sync: wait until the disk has them.

    Raises:
        FileError: it cannot be written.
    """
    lines = b"".join(json_line(record) for record in records)
    with naming(path, "cannot be written"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            end = drop_cut_line(file)
            try:
                written = 0
                while written < len(lines):
                    written += file.write(lines[written:]) or 0
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def drop_cut_line(file: IO[bytes], block: int = 1 << 16) -> int:
    """Remove what follows the last line break of a file that is open for reading and appending. -> its length in bytes"""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - block, 0)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)
    return end
