"""JSON lines: a kill, a full disk or a stranger's file costs one line of text, never a record."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.json_lines import append_json_lines, drop_cut_line, read_json_lines, write_json_lines

RECORDS = [{"id": 1, "text": "ä\u2028b"}, {"id": 2, "text": ""}]


def read(path: Path, **options: object) -> list[dict]:
    return [record for _, record in read_json_lines(path, **options)]  # type: ignore[arg-type]


def test_records_come_back_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    assert write_json_lines(path, iter(RECORDS)) == 2
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\n", 1))
    assert list(read_json_lines(path)) == [(1, RECORDS[0]), (3, RECORDS[1])]
    with pytest.raises(KeyError):
        write_json_lines(path, (RECORDS[key] if key == 0 else {}["no"] for key in (0, 1)))
    assert read(path) == RECORDS


def test_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_json_lines(path, RECORDS, sync=True)
    with path.open("ab") as file:
        file.write(b'{"id": 3, "te')
    with pytest.raises(FileError, match="a.jsonl: line 3: not a JSON object, the file may be cut off"):
        read(path)
    assert read(path, cut_off=True) == RECORDS
    append_json_lines(path, [{"id": 4}])
    assert read(path) == [*RECORDS, {"id": 4}]


@pytest.mark.parametrize("size", [0, 1, 4, 5, 9, 64])
def test_cut_lines_of_any_length_go(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x\n" + b"y" * size)
    (tmp_path / "b").write_bytes(b"y" * size)
    for name, left in (("a", b"x\n"), ("b", b"")):
        with (tmp_path / name).open("a+b") as file:
            assert drop_cut_line(file, block=4) == len(left)
        assert (tmp_path / name).read_bytes() == left


def test_a_full_disk_takes_back_the_part_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_json_lines(path, RECORDS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(FileError, match="a.jsonl: cannot be written") as caught:
            append_json_lines(path, [{"text": "x" * 3000}, {"text": "y" * 3000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and read(path) == RECORDS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "line 2: each line must hold a JSON object, {...}, this one holds a list"),
        (b"\xff{}", "line 2: byte 0xff is not UTF-8"),
        (b"{" + b'"a":{' * 100_000, "line 2: its JSON is nested too deeply"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "line 2: it is longer than the 1,000 bytes"),
        (b"{'a': 1}", "line 2: not a JSON object"),
    ],
)
def test_the_line_at_fault_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(b'{"id": 1}\n' + line + b"\n")
    longest = 1000 if b"xx" in line else 1 << 20
    lines = read_json_lines(tmp_path / "a", longest=longest)
    assert next(lines) == (1, {"id": 1})
    with pytest.raises(FileError) as caught:
        next(lines)
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: {message}") and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: no such file"):
        next(read_json_lines(tmp_path / "a"))
