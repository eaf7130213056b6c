"""The check of a whole record file: in parallel, a chunk at a time, each chunk's result kept for the next time.

What is known of a chunk holds as long as the record file, the settings and the tokenizer are the same (they are in the
name of the journal) and no image of the chunk has changed in size or time (its stamp). A check that was killed goes on
behind the last chunk it wrote down; one that had ended only looks at the images' dates.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.record_check import Checker, CheckError, Finding
from llava_prumerge.data.records import arrow_file, default_cache_dir, open_arrow
from llava_prumerge.data.videos import frame_files
from llava_prumerge.ground.caching import VARIABLE
from llava_prumerge.ground.errors import naming
from llava_prumerge.ground.files import write_text
from llava_prumerge.ground.locks import LockedError, hold
from llava_prumerge.ground.reading import file_digest

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK = 256
# To be raised whenever the same record may get another verdict.
_VERSION = 4
_SHOWN = 5
# A process that has less to do takes longer to start.
_CHUNKS_PER_WORKER = 4
_NUMBERS = ("start", "stop", "bad", "images", "videos", "text_only", "tokens", "supervised", "longest")
_TOKENIZER_FILES = ("*.json", "*.model", "*.jinja")


@dataclass(frozen=True)
class Chunk:
    """What became of the records from `start` to `stop`; the sums are over the sound ones."""

    start: int
    stop: int
    stamp: str
    bad: int
    images: int
    videos: int
    text_only: int
    tokens: int
    supervised: int
    longest: int
    findings: list[Finding]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Chunk:
        """The way back from `asdict`."""
        found = cls(**{**values, "findings": [Finding(**finding) for finding in values["findings"]]})
        if not isinstance(found.stamp, str) or not all(isinstance(getattr(found, name), int) for name in _NUMBERS):
            raise TypeError("a chunk's numbers are none")
        return found


def check_chunk(rows: Dataset, checker: Checker, task: tuple[int, int, str | None]) -> Chunk | None:
    """Checks some records.

    Args:
        rows: all records.
        checker: of single ones.
        task: first record, the one after the last, and the stamp for which the result is known already.

    Returns:
        None where that stamp still holds.
    """
    start, stop, known = task
    records = rows[start:stop]
    stamp = image_stamp(checker.images, (path for paths in records["image"] for path in paths))
    if any(records["video"]):
        folder = checker.video_folder.folder
        stamp += image_stamp(folder, _files(folder, (path for paths in records["video"] for path in paths)))
    if stamp == known:
        return None
    checked = [
        checker(start + at, {name: column[at] for name, column in records.items()}) for at in range(stop - start)
    ]
    sound = [result for result in checked if not result.bad]
    return Chunk(
        start=start,
        stop=stop,
        stamp=stamp,
        bad=len(checked) - len(sound),
        images=sum(result.images for result in sound),
        videos=sum(result.videos for result in sound),
        text_only=sum(not result.images and not result.videos for result in sound),
        tokens=sum(result.tokens for result in sound),
        supervised=sum(result.supervised for result in sound),
        longest=max((result.tokens for result in sound), default=0),
        findings=[finding for result in checked for finding in result.findings],
    )


def _files(folder: str, paths: Iterable[str]) -> Iterator[str]:
    """Videos' files; of one that is a folder its frames."""
    for path in paths:
        place = Path(folder, path)
        yield from (f"{path}/{file.name}" for file in frame_files(place)) if place.is_dir() else [path]


def image_stamp(folder: str, paths: Iterable[str]) -> str:
    """A digest of the images' sizes and times; it changes when one is replaced, repaired, lost or found."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(os.path.join(folder, path))
            digest.update(f"{found.st_size} {found.st_mtime_ns};".encode())
        except (OSError, ValueError):  # a NUL in the path
            digest.update(b"none;")
    return digest.hexdigest()[:32]


_worker_check: Callable[[tuple[int, int, str | None]], Chunk | None] | None = None


def _start_worker(arrow: Path, checker: Checker) -> None:
    global _worker_check
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    _worker_check = partial(check_chunk, open_arrow(arrow), checker)


def _check_in_worker(task: tuple[int, int, str | None]) -> tuple[int, Chunk | None]:
    return task[0], _worker_check(task)


def check_chunks(
    arrow: Path, checker: Checker, tasks: list[tuple[int, int, str | None]], workers: int
) -> Iterator[tuple[int, Chunk | None]]:
    """Yields (start, result) as they come, from this process or `workers` others."""
    workers = min(workers, len(tasks) // _CHUNKS_PER_WORKER)
    if workers <= 1:
        rows = open_arrow(arrow)
        for task in tasks:
            yield task[0], check_chunk(rows, checker, task)
        return
    import multiprocessing

    # Fork would copy the tokenizer's running threads.
    pool = multiprocessing.get_context("spawn").Pool(workers, _start_worker, (arrow, checker))
    with pool:
        yield from pool.imap_unordered(_check_in_worker, tasks)


class Audit:
    """The check of one record file with one set of settings.

    Args:
        data: the record file.
        checker: of single records.
        cache_dir: where its Arrow file and its journal lie; `default_cache_dir()` when None.
    """

    def __init__(self, data: Path, checker: Checker, cache_dir: Path | None = None) -> None:
        self.data, self.checker = data, checker
        folder = cache_dir or default_cache_dir()
        self.arrow = arrow_file(data, folder)
        self.digest = file_digest(data)
        settings = asdict(checker) | {"images": os.path.abspath(checker.images), "version": _VERSION, "chunk": CHUNK}
        settings |= {"data": self.digest, "tokenizer_path": folder_digest(Path(checker.tokenizer_path))}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.journal = folder / "checks" / f"{data.stem}-{key}.jsonl"
        with naming(self.journal.parent, f"cannot be written (${VARIABLE} names another cache)"):
            self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.records = len(open_arrow(self.arrow))

    def run(self, workers: int, advance: Callable[[int], object] = lambda records: None) -> list[Chunk]:
        """Checks what is not known yet. -> the results of all chunks, in order

        Args:
            workers: processes.
            advance: told the number of records that each finished chunk had.
        """
        try:
            with hold(self.journal):
                return self._run(workers, advance)
        except LockedError as error:
            raise CheckError(f"another check of {self.data} is running: {error.reason}") from error

    def _run(self, workers: int, advance: Callable[[int], object]) -> list[Chunk]:
        known, tasks = read_journal(self.journal), []
        for start in range(0, self.records, CHUNK):
            stamp = known[start].stamp if start in known else None
            tasks.append((start, min(start + CHUNK, self.records), stamp))
        with naming(self.journal, "cannot be written"), self.journal.open("a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill has left half written
            for start, chunk in check_chunks(self.arrow, self.checker, tasks, workers):
                if chunk is not None:
                    known[start] = chunk
                    file.write(json.dumps(asdict(chunk)) + "\n")
                    file.flush()
                advance(known[start].stop - start)
        chunks = [known[start] for start, _, _ in tasks]
        write_text(self.journal, "".join(json.dumps(asdict(chunk)) + "\n" for chunk in chunks))
        return chunks


def folder_digest(folder: Path) -> str:
    """A digest of what a tokenizer's folder says of it."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {file_digest(path)};".encode())
    return digest.hexdigest()


def read_journal(path: Path) -> dict[int, Chunk]:
    """What an earlier check wrote down, by first record; the last line may be cut."""
    known: dict[int, Chunk] = {}
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                chunk = Chunk.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            known[chunk.start] = chunk
    return known


def summarise(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """Counts by kind, the first offenders of each, what the sound samples amount to, and every bad record."""
    chunks = list(chunks)
    records = sum(chunk.stop - chunk.start for chunk in chunks)
    summary: dict[str, Any] = {"records": records}
    for name in ("bad", "images", "videos", "text_only", "tokens"):
        summary[name] = sum(getattr(chunk, name) for chunk in chunks)
    summary["supervised_tokens"] = sum(chunk.supervised for chunk in chunks)
    summary["longest"] = max((chunk.longest for chunk in chunks), default=0)
    summary |= {"faults": {}, "notes": {}, "bad_records": []}
    for finding in (finding for chunk in chunks for finding in chunk.findings):
        said = {name: getattr(finding, name) for name in ("sample_id", "index", "detail")}
        entry = summary["faults" if finding.bad else "notes"].setdefault(finding.kind, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < _SHOWN:
            entry["first"].append(said)
        if finding.bad:
            summary["bad_records"].append({"kind": finding.kind, **said})
    return summary


def describe(summary: Mapping[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"{summary['records']} records, {summary['bad']} bad; the sound ones: {summary['images']} images, "
        f"{str(summary['videos']) + ' videos, ' if summary['videos'] else ''}"
        f"{summary['text_only']} without image, {summary['tokens']} tokens ({summary['supervised_tokens']} with loss), "
        f"longest {summary['longest']}"
    ]
    for title in ("faults", "notes"):
        for kind, entry in sorted(summary[title].items(), key=lambda item: -item[1]["count"]):
            lines.append(f"{title[:-1]}: {entry['count']} x {kind}")
            for first in entry["first"]:
                lines.append(f"    {first['sample_id']} (record {first['index']}): {first['detail']}")
    return "\n".join(lines)
