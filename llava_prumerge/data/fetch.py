"""Files over HTTP that survive an interruption: continued where they stopped, and checked by length and SHA-256.

A transfer lies in `NAME.part` until it is whole. It is continued only if the server can tell that the file is still the
same (a strong ETag or a date, sent back as If-Range); else it starts again. The checksum is the one given or the one the
Hugging Face Hub publishes; where neither is known, that of the first download is kept in `NAME.sha256`, and every later run
checks the file against it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any

from llava_prumerge.ground.errors import CannotGoOn, FileError, naming
from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.ground.locks import LockedError, hold
from llava_prumerge.ground.reading import file_digest, read_text

ATTEMPTS = 6
TIMEOUT = 60.0
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_BLOCK = 1 << 20
LEAST_RATE, RATE_SECONDS = 4096, 60.0  # bytes a second, over so many seconds
LARGEST = 200 * 10**9  # bytes of a file; no public set has one half as large
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)

Report = Callable[[int, int | None], object]


class FetchError(CannotGoOn):
    """A file that cannot be had; the message is one line."""


class Unreachable(FetchError):
    """No answer at all."""


class _Interrupted(Exception):
    """A transfer that broke off and may be continued."""


class _TooSlow(_Interrupted):
    """A transfer that goes on, and would for days."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, never from https to http, and keeps the checksum that the Hub sends along."""

    def __init__(self) -> None:
        self.published: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.published = linked_checksum(headers) or self.published
        check_address(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise FetchError(f"{req.full_url} leads from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_address(url: str) -> None:
    """Refuses what is no http or https address: urllib would also read local files."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"{url!r} is neither http nor https")


def linked_checksum(headers: Message) -> str | None:
    """The SHA-256 of a file that the Hub keeps in large-file storage."""
    tag = (headers.get("X-Linked-ETag") or "").strip('"')
    return tag if _SHA256.fullmatch(tag) else None


def open_address(url: str, headers: dict[str, str], redirects: _Redirects | None = None) -> Any:
    """The server's answer.

    Raises:
        FetchError: it refuses.
        Unreachable: there is none.
        _Interrupted: it is busy.
    """
    check_address(url)
    opener = urllib.request.build_opener(redirects or _Redirects())
    headers = {"User-Agent": "llava_prumerge", "Accept-Encoding": "identity", **headers}
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code in _WORTH_ANOTHER_TRY:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from None
        if error.code == 416:
            return error
        raise FetchError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise Unreachable(f"{url}: no answer from {urllib.parse.urlsplit(url).hostname} ({reason})") from None


def fetch(url: str, target: Path, sha256: str | None = None, report: Report = lambda done, total: None) -> str:
    """Makes `target` be the file at `url`, verified. -> its SHA-256

    Args:
        url: http or https.
        target: if it is there, it is only verified.
        sha256: what it must be, where known.
        report: told how many bytes are there, and of how many.

    Raises:
        FetchError: it cannot be had, or is not what it should be.
    """
    try:
        with hold(target):
            return verify(target, sha256) if target.exists() else _fetch(url, target, sha256, report)
    except LockedError as error:
        raise FetchError(f"{target} is being fetched by another process: {error.reason}") from error


def verify(target: Path, sha256: str | None = None) -> str:
    """Compares a file with its checksum: the given one, the one kept beside it, or none, which is then kept. -> SHA-256"""
    digest, kept = file_digest(target), read_checksum(target)
    for expected, source in ((sha256, "published"), (kept, f"kept in {checksum_file(target).name}")):
        if expected not in (None, digest):
            raise FetchError(f"{target} has SHA-256 {digest}, not {expected} as {source}; delete it to fetch it again")
    if kept is None:
        write_checksum(target, digest)
    return digest


def checksum_file(target: Path) -> Path:
    """Where a file's checksum is kept, in the format of `sha256sum --check`."""
    return target.with_name(f"{target.name}.sha256")


def read_checksum(target: Path) -> str | None:
    """The kept checksum, if there is one."""
    try:
        words = read_text(checksum_file(target), _BLOCK).split()
    except FileError:
        return None
    return words[0] if words and _SHA256.fullmatch(words[0]) else None


def write_checksum(target: Path, digest: str) -> None:
    """Keeps a checksum."""
    write_text(checksum_file(target), f"{digest}  {target.name}\n")


def _fetch(url: str, target: Path, sha256: str | None, report: Report) -> str:
    part = Part(target)
    answered, failures, redirects = False, 0, _Redirects()
    while True:
        before = part.size
        try:
            part.transfer(url, redirects, report)
            break
        except (_Interrupted, Unreachable) as error:
            if isinstance(error, Unreachable) and not answered:
                raise  # there is no network, or no such host: waiting does not help
            answered = True
            failures = 1 if part.size > before and not isinstance(error, _TooSlow) else failures + 1
            if failures >= ATTEMPTS:
                kept = f"; {part.size:,} bytes are kept, the same command goes on from there" if part.size else ""
                raise FetchError(f"{url}: {error} ({failures} times in a row){kept}") from None
            time.sleep(min(_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))
    digest, expected = file_digest(part.path), sha256 or redirects.published
    if expected not in (None, digest):
        part.discard()
        raise FetchError(f"{url}: SHA-256 is {digest}, not {expected} as published; the download is thrown away")
    write_checksum(target, digest)
    os.replace(part.path, target)
    part.discard()
    return digest


class Part:
    """A transfer that may not be whole yet: its bytes, and what the server said of the file when they came.

    Args:
        target: the file it will be.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self) -> None:
        """Forgets all of it."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def validator(self, url: str) -> str | None:
        """What tells whether the server still has the file these bytes are of."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self.notes.read_text(encoding="utf-8"))
            if noted["url"] == url:
                return noted["validator"]
        return None

    def transfer(self, url: str, redirects: _Redirects, report: Report) -> None:
        """Fetches what is missing.

        Raises:
            _Interrupted: less came than was promised.
        """
        validator = self.validator(url)
        if validator is None:
            self.discard()
        start = self.size
        headers = {"Range": f"bytes={start}-", "If-Range": validator} if start else {}
        with open_address(url, headers, redirects) as answer:
            redirects.published = linked_checksum(answer.headers) or redirects.published
            if answer.status == 416:
                if answer.headers.get("Content-Range") == f"bytes */{start}":
                    return  # nothing is missing
                self.discard()
                raise _Interrupted(f"the server has no byte {start:,}")
            if answer.headers.get_content_type() == "text/html":
                raise FetchError(f"{url}: the server sends a web page instead of the file")
            start, total = self._check_start(answer, start)
            if (total or start) > LARGEST:
                raise FetchError(f"{url} has {total or start:,} bytes; at most {LARGEST:,} are fetched")
            if start == 0:
                self.discard()
                self._note(url, answer.headers)
            _check_space(self.path.parent, url, (total or start) - start)
            self._receive(answer, start, total, report)

    def _check_start(self, answer: Any, start: int) -> tuple[int, int | None]:
        """Where what is coming belongs, and how long the whole is."""
        if answer.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
            if not match or int(match[1]) != start:
                self.discard()
                raise _Interrupted(f"the server sends {answer.headers.get('Content-Range')!r}, asked from {start:,}")
            return start, None if match[2] == "*" else int(match[2])
        length = answer.headers.get("Content-Length")
        return 0, None if length is None else int(length)

    def _note(self, url: str, headers: Message) -> None:
        tag = headers.get("ETag")
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        write_json(self.notes, {"url": url, "validator": validator}, indent=None)

    def _receive(self, answer: Any, start: int, total: int | None, report: Report) -> None:
        done = start
        with naming(self.path, "cannot be written"), self.path.open("ab") as file:
            for block in read_steadily(answer):
                file.write(block)
                done += len(block)
                report(done, total)
                if done > LARGEST:
                    raise FetchError(f"{answer.url} does not end: {done:,} bytes came, at most {LARGEST:,} are fetched")
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done < total:
            raise _Interrupted(f"the connection closed after {done:,} of {total:,} bytes")


def read_steadily(answer: Any) -> Iterator[bytes]:
    """What a server sends, as it comes, if no minute passes with fewer than 4096 bytes a second.

    Raises:
        _Interrupted: the connection broke; _TooSlow: less came.
    """
    began, came = time.monotonic(), 0
    while True:
        try:
            block = answer.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"the connection broke ({error})") from None
        if not block:
            return
        yield block
        came += len(block)
        passed = time.monotonic() - began
        if passed >= RATE_SECONDS:
            if came < LEAST_RATE * passed:
                raise _TooSlow(f"the server sends {came / passed:,.0f} bytes a second, fewer than {LEAST_RATE:,}")
            began, came = time.monotonic(), 0


def _check_space(folder: Path, url: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(f"{url} needs {needed:,} more bytes, {folder} has {free:,} free")


def _read_up_to(answer: Any, limit: int) -> bytes:
    content = bytearray()
    for block in read_steadily(answer):
        content += block
        if len(content) > limit:
            break
    return bytes(content)


def read_address(url: str, limit: int) -> bytes:
    """A small file, in memory; tried again when the connection breaks.

    Args:
        url: http or https.
        limit: bytes; a longer answer is an error.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
        try:
            with open_address(url, {}) as answer:
                content = _read_up_to(answer, limit)
                length = answer.headers.get("Content-Length")
            if len(content) > limit:
                raise FetchError(f"{url}: longer than {limit:,} bytes")
            if length is None or not length.isdecimal() or len(content) == int(length):
                return content
            reason = f"the connection closed after {len(content):,} of {int(length):,} bytes"
        except (_Interrupted, OSError, http.client.HTTPException) as error:
            reason = str(error)
    raise FetchError(f"{url}: {reason} ({ATTEMPTS} times)")
