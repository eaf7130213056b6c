"""Whole files and folders: what is under a name is always complete, whatever ends the writer."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_prumerge.ground import files
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import (
    check_free,
    remove_folder,
    whole_file,
    whole_folder,
    whole_text,
    write_bytes,
    write_json,
    write_text,
)

FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 KiB: the system's own refusal, half-way through."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "text", "ü\r\n")
    write_bytes(tmp_path / "new" / "bytes", b"\x00\xff")
    write_json(tmp_path / "new" / "json", {"ä": [1]})
    with whole_text(tmp_path / "new" / "lines") as file:
        file.write("a\nb\n")
    assert (tmp_path / "new" / "text").read_bytes() == "ü\r\n".encode()
    assert (tmp_path / "new" / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "new" / "json").read_text("utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'
    assert (tmp_path / "new" / "lines").read_bytes() == b"a\nb\n"
    assert names(tmp_path / "new") == ["bytes", "json", "lines", "text"]


def test_what_utf8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    """Names of files that are not UTF-8 come to Python with such characters."""
    strange = "a\udce4"
    write_text(tmp_path / "a", strange)
    write_json(tmp_path / "b", [strange])
    with whole_text(tmp_path / "c") as file:
        file.write(strange)
    assert (tmp_path / "a").read_text("utf-8") == (tmp_path / "c").read_text("utf-8") == "a\\udce4"
    assert json.loads((tmp_path / "b").read_text("utf-8")) == [strange]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), whole_file(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyError("x")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", {"a": object()})
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


@pytest.mark.usefixtures("small_files")
def test_a_refusal_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(FileError) as caught:
        write_bytes(tmp_path / "a", bytes(100_000))
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: cannot be written: the file is larger than")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]
    write_text(tmp_path / "a", "second start")
    assert (tmp_path / "a").read_text() == "second start"


@pytest.mark.usefixtures("small_files")
def test_a_refusal_half_way_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(FileError, match="cannot be written: the file is larger"),
        whole_folder(tmp_path / "f") as folder,
    ):
        write_text(folder / "small", "fits")
        (folder / "large").write_bytes(bytes(100_000))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "disk reports"),
    ],
)
def test_a_disk_that_refuses_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    """Some file systems learn only when they write back that there is no room."""

    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(FileError, match=f"a: cannot be written: .*{reason}"):
        write_text(tmp_path / "a", "new")
    with pytest.raises(FileError, match=f"f: cannot be written: .*{reason}"), whole_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_refusal_that_a_rust_library_reports_is_ours_and_other_errors_are_not(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="f: cannot be written: the disk is full"), whole_folder(tmp_path / "f"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="anything else"), whole_folder(tmp_path / "f"):
        raise RuntimeError("anything else")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "f"):
        (tmp_path / "an input").read_text()
    with pytest.raises(ConnectionResetError), whole_file(tmp_path / "f"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda base: base / "file" / "below", "a part of its path is a file"),
        (lambda base: base / "folder", "it is a folder"),
        (lambda base: base / ("n" * 300), "the name is too long"),
        (lambda base: base / "circle", "links lead in a circle"),
    ],
    ids=["below a file", "a folder", "long name", "circle"],
)
def test_places_that_take_no_file(tmp_path: Path, make: object, reason: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(FileError, match=reason) as caught:
        write_text(path, "x")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert names(tmp_path) == ["circle", "file", "folder"]


def test_long_names_that_the_file_system_takes(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "x")
    with whole_folder(tmp_path / ("m" * 255)) as folder:
        write_text(folder / "a", "x")
    assert names(tmp_path) == ["m" * 255, "n" * 255]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_text(tmp_path / "real" / "a", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").read_text() == "new"


def test_a_device_is_written_to(tmp_path: Path) -> None:
    write_text("/dev/null", "x")
    assert Path("/dev/null").is_char_device()


def _die_while_writing(base: Path) -> None:
    with whole_file(base / "a") as file, whole_folder(base / "f") as folder:
        file.write(b"half")
        file.flush()
        (folder / "left").mkdir()
        (folder / "left" / "over").write_text("half")
        os._exit(9)


def test_a_kill_leaves_the_old_content_and_the_next_writer_clears_up(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    process = FORK.Process(target=_die_while_writing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert (tmp_path / "a").read_text() == "old" and not (tmp_path / "f").exists()
    assert len(names(tmp_path)) == 3  # what the kill left, under hidden names
    write_text(tmp_path / "a", "new")
    with whole_folder(tmp_path / "f") as folder:
        assert names(folder) == []
        write_text(folder / "x", "x")
    assert names(tmp_path) == ["a", "f"] and names(tmp_path / "f") == ["x"]
    assert (tmp_path / "a").read_text() == "new"


def _write_often(path: Path, letter: str, rounds: int) -> None:
    for length in range(1, rounds):
        write_json(path, letter * (length * 997 % 20_000), sync=False)


def test_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    writers = [FORK.Process(target=_write_often, args=(path, letter, 120)) for letter in "abc"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen |= set(json.loads(path.read_text()))
            assert len(set(json.loads(path.read_text()))) <= 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen and names(tmp_path) == ["shared.json"]


def test_without_locks_a_name_of_its_own_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
        first.write(b"1")
        second.write(b"2")
    with whole_folder(tmp_path / "f") as folder:
        write_text(folder / "x", "x")
    assert (tmp_path / "a").read_bytes() == b"1" and names(tmp_path) == ["a", "f"]


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with whole_folder(tmp_path / "f") as folder:  # an empty one is in nobody's way
        write_text(folder / "old", "x")
    with pytest.raises(FileError, match="it exists already; name another folder"), whole_folder(tmp_path / "f"):
        raise AssertionError("the block must not run")
    with pytest.raises(KeyError), whole_folder(tmp_path / "f", replace=True) as folder:
        raise KeyError
    assert names(tmp_path / "f") == ["old"]
    with whole_folder(tmp_path / "f", replace=True) as folder:
        write_text(folder / "new", "x")
    assert names(tmp_path / "f") == ["new"] and names(tmp_path) == ["f"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="it is a file; name a folder"):
        check_free(tmp_path / "file", replace=True)


def test_removing_takes_the_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f" / "deep").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(errno.EACCES, "no")))
        with pytest.raises(FileError, match="f: cannot be removed: permission denied"):
            remove_folder(tmp_path / "f")
    assert not (tmp_path / "f").exists() and len(names(tmp_path)) == 1
    (tmp_path / "f").mkdir()
    remove_folder(tmp_path / "f")
    assert names(tmp_path) == []
