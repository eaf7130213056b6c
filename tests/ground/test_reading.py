"""Reading: one line that names the file, the place and the remedy, and never more than a limit in memory."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.reading import file_digest, read_bytes, read_json, read_json_object, read_text


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf\xc3\xa4\r\n")
    assert read_text(tmp_path / "a") == "ä\r\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\nB\xe4r", "line 2: byte 0xe4 is not UTF-8, at byte 2 of the line; .*iconv -f LATIN1"),
        ("{}".encode("utf-16"), "it is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": 1', "line 1, column 8: not JSON"),
        (b'{"a": 1}\n{"a": 2}\n', r"line 2: a second JSON value begins here; .*\.jsonl"),
        (b'{"a": 1} x', "column 10: not JSON: Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 10_000, "not JSON: .*digits"),
    ],
)
def test_what_is_no_json_is_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "kind"), [("[]", "a list"), ("null", "null"), ("3", "a number"), ('"x"', "text")])
def test_an_object_is_an_object(tmp_path: Path, content: str, kind: str) -> None:
    (tmp_path / "a").write_text(content)
    with pytest.raises(FileError, match=f"must hold a JSON object, .* holds {kind}$"):
        read_json_object(tmp_path / "a")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    assert len(read_bytes(tmp_path / "a", limit=11)) == 11
    with pytest.raises(FileError, match="a: it is longer than the 10 bytes"):
        read_bytes(tmp_path / "a", limit=10)
    with pytest.raises(FileError, match="b: cannot be read: no such file"):
        read_json(tmp_path / "b")
    with pytest.raises(FileError, match="cannot be read: it is a folder"):
        file_digest(tmp_path)


def test_the_error_survives_a_process_boundary(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        read_text(tmp_path / "b")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (
        str(again) == str(caught.value) and again.errno == caught.value.errno and again.filename == str(tmp_path / "b")
    )


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
