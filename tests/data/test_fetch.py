"""Downloads from a server on loopback: continued, started again, refused and verified."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from data.file_server import FileServer, serve_files

from llava_prumerge.data import fetch as fetching
from llava_prumerge.data.fetch import FetchError, Unreachable, fetch, read_address
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.locks import hold

ROOT = Path(__file__).resolve().parents[2]
CONTENT = random.Random(0).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "_PAUSE", 0.001)
    with serve_files() as state:
        state.files["/a.zip"] = CONTENT
        yield state


def test_a_file_is_fetched_once_and_then_verified(server: FileServer, tmp_path: Path) -> None:
    target, seen = tmp_path / "new" / "a.zip", []
    assert fetch(server.url("/a.zip"), target, report=lambda *state: seen.append(state)) == DIGEST
    assert target.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 1
    assert (target.parent / "a.zip.sha256").read_text() == f"{DIGEST}  a.zip\n"
    assert sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")) == [
        "a.zip",
        "a.zip.sha256",
    ]
    assert fetch(server.url("/a.zip"), target) == DIGEST and len(server.asked) == 1
    target.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(FetchError, match=rf"a\.zip has SHA-256 .*, not {DIGEST} as kept in a\.zip\.sha256; delete it"):
        fetch(server.url("/a.zip"), target)


def test_broken_connections_are_continued(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [1_000_000, 1, 900_000]
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST
    assert [asked for _, asked in server.asked] == [None, "bytes=1000000-", "bytes=1000001-", "bytes=1900001-"]
    assert server.sent == len(CONTENT), "no byte was sent twice"


def test_a_later_command_goes_on_from_the_part(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [700_000] + [0] * (fetching.ATTEMPTS - 1)
    with pytest.raises(FetchError, match=r"closed after 700,000 of 3,000,000 bytes .*; 700,000 bytes are kept"):
        fetch(server.url("/a.zip"), tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists() and (tmp_path / "a.zip.part").stat().st_size == 700_000
    server.asked.clear()
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST
    assert server.asked == [("/a.zip", "bytes=700000-")]


def test_another_file_under_the_same_address_is_not_appended(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [700_000] + [0] * (fetching.ATTEMPTS - 1)
    with pytest.raises(FetchError):
        fetch(server.url("/a.zip"), tmp_path / "a.zip")
    server.files["/a.zip"] = CONTENT[::-1]
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert (tmp_path / "a.zip").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lack", ["dates", "ranges"])
def test_a_server_that_cannot_continue_is_asked_for_all_of_it(server: FileServer, tmp_path: Path, lack: str) -> None:
    setattr(server, lack, False)
    server.breaks = [700_000]
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST
    assert server.asked[1] == ("/a.zip", None if lack == "dates" else "bytes=700000-")
    assert server.sent == 700_000 + len(CONTENT)


def test_a_part_that_is_whole_needs_no_byte(server: FileServer, tmp_path: Path) -> None:
    """Killed between the last byte and the name."""
    server.breaks = [len(CONTENT) - 1] + [0] * (fetching.ATTEMPTS - 1)
    with pytest.raises(FetchError):
        fetch(server.url("/a.zip"), tmp_path / "a.zip")
    with (tmp_path / "a.zip.part").open("ab") as part:
        part.write(CONTENT[-1:])
    server.sent = 0
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST and server.sent == 0
    (tmp_path / "a.zip").rename(tmp_path / "b.zip.part")  # longer than the file, and of unknown origin
    assert fetch(server.url("/a.zip"), tmp_path / "b.zip") == DIGEST


def test_a_wrong_checksum_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=rf"SHA-256 is {DIGEST}, not {'0' * 64} as published; the download is thrown"):
        fetch(server.url("/a.zip"), tmp_path / "a.zip", sha256="0" * 64)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("a.zip")]
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip", sha256=DIGEST) == DIGEST
    with pytest.raises(FetchError, match="as published; delete it"):
        fetch(server.url("/a.zip"), tmp_path / "a.zip", sha256="0" * 64)


def test_the_hubs_checksum_is_taken_from_its_redirect(server: FileServer, tmp_path: Path) -> None:
    server.redirects["/resolve/a.zip"] = (server.url("/a.zip"), {"X-Linked-ETag": f'"{"0" * 64}"'})
    with pytest.raises(FetchError, match=f"not {'0' * 64} as published"):
        fetch(server.url("/resolve/a.zip"), tmp_path / "a.zip")
    server.redirects["/resolve/a.zip"] = (server.url("/a.zip"), {"X-Linked-ETag": f'"{DIGEST}"'})
    server.breaks = [900_000]
    assert fetch(server.url("/resolve/a.zip"), tmp_path / "a.zip") == DIGEST
    assert server.asked[-1] == ("/a.zip", "bytes=900000-")


def test_refusals_are_one_line_and_busy_servers_are_asked_again(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"/no\.zip: the server answers 404 Not Found$"):
        fetch(server.url("/no.zip"), tmp_path / "a.zip")
    assert len(server.asked) == 1 and not (tmp_path / "a.zip").exists()
    server.web_pages.add("/a.zip")
    with pytest.raises(FetchError, match="a web page instead of the file"):
        fetch(server.url("/a.zip"), tmp_path / "a.zip")
    server.web_pages.clear()
    server.refusals = [503, 429]
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST
    server.refusals = [503] * 99
    with pytest.raises(FetchError, match=rf"answers 503 Service Unavailable \({fetching.ATTEMPTS} times in a row\)$"):
        fetch(server.url("/a.zip"), tmp_path / "b.zip")


def test_without_a_network_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match="no answer from 127.0.0.1 .*refused"):
        fetch(f"http://127.0.0.1:{port}/a.zip", tmp_path / "a.zip")

    def fail(*arguments: object, **settings: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Unreachable, match=r"no answer from nowhere\.invalid \(.*Name or service not known\)"):
        fetch("http://nowhere.invalid/a.zip", tmp_path / "a.zip")


def test_only_http_is_spoken(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/a", "/etc/passwd"):
        with pytest.raises(FetchError, match="neither http nor https"):
            fetch(url, tmp_path / "a.zip")
    server.redirects["/r"] = (f"file://{tmp_path}/secret", {})
    with pytest.raises(FetchError):
        fetch(server.url("/r"), tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_two_processes_do_not_write_one_file(server: FileServer, tmp_path: Path) -> None:
    with hold(tmp_path / "a.zip"), pytest.raises(FetchError, match="being fetched by another process"):
        fetch(server.url("/a.zip"), tmp_path / "a.zip")


def test_a_full_disk_is_known_beforehand(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: _Usage())
    with pytest.raises(FetchError, match=r"needs 3,000,000 more bytes, .* has 1,000 free"):
        fetch(server.url("/a.zip"), tmp_path / "a.zip")
    assert not (tmp_path / "a.zip.part").exists()


class _Usage:
    free = 1000


def test_small_files_are_read_whole_or_not_at_all(server: FileServer) -> None:
    server.breaks = [10, 20]
    assert read_address(server.url("/a.zip"), 4_000_000) == CONTENT
    with pytest.raises(FetchError, match="longer than 1,000 bytes"):
        read_address(server.url("/a.zip"), 1000)
    server.breaks = [10] * fetching.ATTEMPTS
    with pytest.raises(FetchError, match=f"closed after 10 of 3,000,000 bytes .{fetching.ATTEMPTS} times"):
        read_address(server.url("/a.zip"), 4_000_000)


def test_kill_9_loses_no_more_than_what_was_under_way(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [2_000_000] * 1
    server.refusals = []
    code = "import sys; from pathlib import Path; from llava_prumerge.data.fetch import fetch\n"
    code += "import llava_prumerge.data.fetch as f; f._PAUSE = 100\n"
    code += "fetch(sys.argv[1], Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, server.url("/a.zip"), str(tmp_path / "a.zip")], cwd=ROOT)
    part = tmp_path / "a.zip.part"
    deadline = time.monotonic() + 60
    while (not part.exists() or part.stat().st_size < 2_000_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert kept == 2_000_000
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST
    assert server.asked[-1] == ("/a.zip", f"bytes={kept}-")


@contextlib.contextmanager
def endless(head: bytes, block: bytes, pause: float) -> Iterator[str]:
    """A server that never ends its answer. -> its address"""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        over = threading.Event()

        def drip(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n" + head + b"\r\n")
                while not over.wait(pause):
                    client.sendall(block)

        def accept() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    threading.Thread(target=drip, args=(listening.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.zip"
        finally:
            over.set()
            thread.join()


def test_a_server_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt gets a little further: that is no reason to go on for days."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in (("_PAUSE", 0.001), ("RATE_SECONDS", 0.1), ("ATTEMPTS", 3)):
        monkeypatch.setattr(fetching, name, value)
    with endless(b'Content-Length: 9000000\r\nETag: "x"\r\n', b"x" * 10, 0.02) as url:
        with pytest.raises(
            FetchError, match=r"the server sends [\d,]+ bytes a second, fewer than 4,096 \(3 times in a row\)"
        ):
            fetch(url, tmp_path / "a.zip")
        with pytest.raises(FetchError, match=r"bytes a second, fewer than 4,096 \(3 times\)"):
            read_address(url, 10_000_000)
    assert not (tmp_path / "a.zip").exists()


def test_a_file_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "LARGEST", 2_000_000)
    with endless(b"", b"x" * 100_000, 0.0) as url:
        with pytest.raises(FetchError, match=r"a\.zip does not end: [\d,]+ bytes came, at most 2,000,000 are fetched"):
            fetch(url, tmp_path / "a.zip")
        with pytest.raises(FetchError, match="longer than 500,000 bytes"):
            read_address(url, 500_000)
    with (
        endless(b"Content-Length: 2000001\r\n", b"x", 0.01) as url,
        pytest.raises(FetchError, match="has 2,000,001 bytes; at most"),
    ):
        fetch(url, tmp_path / "b.zip")


def test_a_full_disk_is_one_line(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(fetching.os, "fsync", refuse)
        with pytest.raises(FileError, match=r"a\.zip\.part.*: cannot be written: the disk is full"):
            fetch(server.url("/a.zip"), tmp_path / "a.zip")
    assert fetch(server.url("/a.zip"), tmp_path / "a.zip") == DIGEST
