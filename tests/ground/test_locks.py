"""One process at a time, also after a kill, in a child, and on file systems that have no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_prumerge.ground import locks
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.locks import Holder, LockedError, hold

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import errno, fcntl, sys, time
sys.path.insert(0, {root!r})
from llava_prumerge.ground.locks import hold
if {without}:
    def refuse(*words): raise OSError(errno.ENOSYS, "no locks")
    fcntl.lockf = refuse
with hold({path!r}, inside=True) as left:
    print("held", left, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=[False, True], ids=["with locks", "without locks"])
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of file systems."""
    if request.param:

        def refuse(*words: object) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "lockf", refuse)
    return request.param


def start(folder: Path, without: bool) -> subprocess.Popen:
    """Another process that holds the folder until it is told to end."""
    script = SCRIPT.format(root=str(ROOT), path=str(folder), without=without)
    made = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert made.stdout is not None and made.stdout.readline().startswith("held")
    return made


def test_a_second_process_is_told_who_holds_it(tmp_path: Path, without: bool) -> None:
    folder = tmp_path / "run"
    other = start(folder, without)
    with (
        pytest.raises(LockedError, match=rf"run: process {other.pid} on \S+ is at work there$") as caught,
        hold(folder, inside=True),
    ):
        pass
    assert isinstance(caught.value, FileError) and "\n" not in str(caught.value)
    other.communicate("end\n")
    assert other.returncode == 0 and list(folder.iterdir()) == []
    with hold(folder, inside=True) as left:
        assert left is None
    assert list(folder.iterdir()) == []


def test_a_killed_holder_holds_nothing(tmp_path: Path, without: bool) -> None:
    folder = tmp_path / "run"
    other = start(folder, without)
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()
    with hold(folder, inside=True) as left:
        assert left == f"process {other.pid} on {Holder.here().host} was at work here and has ended without a word"
        assert json.loads((folder / ".holder").read_text())["process"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_one_process_cannot_hold_it_twice(tmp_path: Path, without: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with hold(tmp_path / "answers.jsonl"):
        for name in ("answers.jsonl", "link/answers.jsonl"):
            with pytest.raises(LockedError, match="this process is at work there already"), hold(tmp_path / name):
                pass
        with hold(tmp_path / "other.jsonl"):
            pass
    with hold(tmp_path / "answers.jsonl"):
        pass


def test_a_child_neither_holds_nor_releases_it(tmp_path: Path, without: bool) -> None:
    """A loading process that outlives a killed training must not keep the next one out."""
    with hold(tmp_path, inside=True):
        pid = os.fork()
        if not pid:
            try:
                with hold(tmp_path / "own"):
                    pass
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        names = {path.name for path in tmp_path.iterdir()}
        assert ".holder" in names and (".lock" in names) != without
        assert start_fails(tmp_path, without)


def start_fails(folder: Path, without: bool) -> bool:
    script = SCRIPT.format(root=str(ROOT), path=str(folder), without=without)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode == 1 and "LockedError" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"host": "elsewhere"},
            r"process \d+ on elsewhere is at work there; if that is not so any more, delete \S+/\.holder$",
        ),
        ({}, r"process \d+ on \S+ is at work there$"),
        ({"boot": "an earlier start of the machine"}, None),
        ({"started": "7"}, None),
        ({"process": 1 << 30}, None),
    ],
)
def test_without_locks_the_holders_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str | None
) -> None:
    def refuse(*words: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    holder = tmp_path / ".holder"
    holder.write_text(json.dumps(vars(Holder.here()) | change))
    if message is None:
        with hold(tmp_path, inside=True) as left:
            assert left is not None and "has ended without a word" in left
        assert not holder.exists()
        return
    with pytest.raises(LockedError, match=message), hold(tmp_path, inside=True):
        pass
    assert list(tmp_path.iterdir()) == [holder]
    holder.unlink()
    with hold(tmp_path, inside=True) as left:
        assert left is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"host": 3}'])
def test_a_torn_holder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: bool, content: bytes
) -> None:
    monkeypatch.setattr(locks, "_TORN_SECONDS", -1.0)
    (tmp_path / ".holder").write_bytes(content)
    with hold(tmp_path, inside=True):
        assert json.loads((tmp_path / ".holder").read_text())["process"] == os.getpid()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FileError, match=r"file/run: cannot be locked: a part of its path is a file"),
        hold(tmp_path / "file" / "run", inside=True),
    ):
        pass
