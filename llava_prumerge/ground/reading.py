"""Reading files whole: bytes, text in UTF-8, JSON; bounded, and with one line that names the file where it is not what it should be."""

from __future__ import annotations

import errno
import hashlib
import json
from typing import Any

from llava_prumerge.ground.encodings import decode_text
from llava_prumerge.ground.errors import AnyPath, FileError, naming


def read_bytes(path: AnyPath, limit: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        limit: bytes; a longer file is refused before it is read.

    Raises:
        FileError: it cannot be read, is no file, or is longer than the limit.
    """
    with naming(path, "cannot be read"), open(path, "rb") as file:
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise FileError(path, f"it is longer than the {limit:,} bytes that are accepted here", errno.EFBIG)
    return content


def read_text(path: AnyPath, limit: int | None = None) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        FileError: it cannot be read, is longer than `limit` bytes, or is not UTF-8: with the line, what was found and
            how to convert the file.
    """
    return decode_text(read_bytes(path, limit), path)


def read_json(path: AnyPath, limit: int | None = None) -> Any:
    """The value in a JSON file.

    Raises:
        FileError: it cannot be read, is not UTF-8, or is not JSON: with line and column; JSON lines are named as such.
    """
    return parse_json(read_text(path, limit), path)


def read_json_object(path: AnyPath, limit: int | None = None) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileError: as `read_json`, or the file holds a list, text or number instead of an object.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise FileError(path, f"it must hold a JSON object, {{...}}, and holds {kind_of(value)}")
    return value


def parse_json(text: str, path: AnyPath) -> Any:
    """The value in the text of a JSON file; `path` is for the message alone. See `read_json`."""
    if not text.strip():
        raise FileError(path, "it is empty; a JSON value is expected")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[: error.pos].rstrip(" \t\r").endswith("\n"):
            raise FileError(
                path,
                f"line {error.lineno}: a second JSON value begins here; if the file has one value a line, name it .jsonl",
            ) from error
        raise FileError(path, f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise FileError(path, "its JSON is nested too deeply") from error
    except ValueError as error:  # a whole number with more digits than Python reads
        raise FileError(path, f"not JSON: {error}") from error


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def file_digest(path: AnyPath) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        FileError: it cannot be read.
    """
    with naming(path, "cannot be read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
