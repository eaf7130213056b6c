"""Record files as they lie on disk, a JSON list or JSON lines in UTF-8: read record by record, of which one is held.

`json.load` would hold LLaVA's gigabyte of text and four more of objects.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_prumerge.ground.encodings import decode_text, read_text_blocks
from llava_prumerge.ground.errors import FileError, InputError, naming
from llava_prumerge.ground.reading import kind_of

SUFFIXES = (".json", ".jsonl")
LONGEST_RECORD = 1 << 26
"""Characters, or bytes of a line. A file that lacks a quote would otherwise be read to its end as one record."""
_DELIMITERS = tuple(",] \t\n\r")
_SPACE = re.compile(r"[ \t\n\r]*")


class RecordFileError(InputError):
    """A record file that cannot be read; the message is one line with the file and the place."""


def read_records(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yields the raw records of a `.json` list or a `.jsonl` file.

    Raises:
        RecordFileError: the file is missing, is not UTF-8 or not JSON, or is not what its name says: with the place, and
            what to do.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise RecordFileError(f"{path}: its name must end in .json (a list of records) or .jsonl (one a line)")
    try:
        yield from _lines(path) if path.suffix == ".jsonl" else _Elements(path)
    except FileError as error:
        raise RecordFileError(str(error)) from error


def _lines(path: Path) -> Iterator[Any]:
    with naming(path, "cannot be read"), path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_RECORD + 1):
            number += 1
            if number == 1 and line.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                raise FileError(path, "it holds a JSON list, but its name says JSON lines; name it .json")
            if len(line) > LONGEST_RECORD:
                raise FileError(path, f"line {number}: it is longer than the {LONGEST_RECORD:,} bytes of a record")
            if line.strip():
                text = decode_text(line, path, number)
                try:
                    yield json.loads(text)
                except json.JSONDecodeError as error:
                    raise FileError(path, f"line {number}, column {error.colno}: not JSON: {error.msg}") from error
                except (RecursionError, ValueError) as error:
                    raise FileError(path, f"line {number}: not JSON: {_said(error)}") from error


class _Elements:
    """The elements of a JSON list, parsed one by one from a window that slides over the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text, self.at, self.ended = "", 0, False
        self.line = 1
        self.blocks: Iterator[str] = iter(())
        self.decode = json.JSONDecoder().raw_decode

    def __iter__(self) -> Iterator[Any]:
        with naming(self.path, "cannot be read"), self.path.open("rb") as file:
            self.blocks = read_text_blocks(file, self.path)
            yield from self._elements()

    def _elements(self) -> Iterator[Any]:
        opening = self._next_character()
        if not opening:
            raise FileError(self.path, "it is empty; a list of records is expected")
        if opening != "[":
            raise self._no_list()
        self.at += 1
        separator = "]" if self._next_character() == "]" else ","
        while separator == ",":
            yield self._element()
            separator = self._next_character()
            if separator not in (",", "]"):
                raise self._error("not JSON: expected ',' or ']'")
            self.at += separator == ","
        self.at += 1
        if self._next_character():
            raise self._error("not JSON: extra text after the list")

    def _no_list(self) -> FileError:
        """What is wrong with a file that begins otherwise than a list."""
        value = self._element()
        if isinstance(value, dict) and self._next_character() == "{":
            return self._error("a second JSON object begins here; if the file has one record a line, name it .jsonl")
        return FileError(self.path, f"it holds {kind_of(value)}; a list of records is expected")

    def _element(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended:
                    self.at = error.pos
                    raise self._error(f"not JSON: {error.msg}") from None
            except (RecursionError, ValueError) as error:  # too deep, or a number of too many digits
                raise self._error(f"not JSON: {_said(error)}") from None
            else:
                # Of a number the window may hold the beginning only: 12 of 123, 1.5 of 1.5e3.
                if self.ended or self.text[end : end + 1] in _DELIMITERS:
                    self.at = end
                    return value
            if len(self.text) - self.at > LONGEST_RECORD:
                raise self._error(
                    f"a record of more than {LONGEST_RECORD:,} characters begins here; is a quote missing?"
                )
            self._read()

    def _next_character(self) -> str:
        """Skips white space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read()

    def _read(self) -> None:
        """Makes the window longer by a block, or by its own length while one element does not fit."""
        self.line += self.text.count("\n", 0, self.at)
        pieces = [self.text[self.at :]]
        wanted = 2 * len(pieces[0])
        while sum(map(len, pieces)) <= wanted:
            more = next(self.blocks, "")
            pieces.append(more)
            if not more:
                self.ended = True
                break
        self.text, self.at = "".join(pieces), 0

    def _error(self, message: str) -> FileError:
        line = self.line + self.text.count("\n", 0, self.at)
        return FileError(self.path, f"line {line}: {message}{self._near()}")

    def _near(self) -> str:
        """What stands at the place, as a line may be the whole file."""
        near = self.text[max(self.at - 20, 0) : self.at + 20]
        return f", near {near!r}" if near.strip() else ""


def _said(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
