"""What was worked out about a file, kept until the file changes; a cache that cannot be read or written is done without."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.reading import read_json_object

VARIABLE = "LLAVA_PRUMERGE_CACHE"
MOST_ENTRIES = 1000
_FRESH_SECONDS = 2.0  # a file changed again within the resolution of its time would look the same
_LARGEST = 1 << 24  # bytes of a cache that is read


def cache_folder() -> Path:
    """`$LLAVA_PRUMERGE_CACHE`, or `llava_prumerge` under `$HF_HOME` or its default. It need not exist."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "llava_prumerge"


def remember(kind: str, file: Path, compute: Callable[[Path], str]) -> str:
    """The text that `compute` makes of a file, worked out again only if the file has changed.

    A file counts as unchanged while its size, its times of change (of content and of inode) and its inode are the same.

    Args:
        kind: what is worked out, with its version; also the name of the cache's file.
        file: a file that exists.
        compute: the work.
    """
    place, before = os.path.realpath(file), _stamp(file)
    cache = cache_folder() / f"{kind}.json"
    found = _read(cache).get(place)
    if isinstance(found, list) and found[:-1] == before and found[1:] and isinstance(found[-1], str):
        return found[-1]
    text = compute(file)
    if _stamp(file) == before and time.time() - max(before[1], before[2]) / 1e9 > _FRESH_SECONDS:
        entries = _read(cache)  # anew: somebody else may have written meanwhile
        entries.pop(place, None)
        entries[place] = [*before, text]
        for oldest in list(entries)[: max(len(entries) - MOST_ENTRIES, 0)]:
            del entries[oldest]
        with contextlib.suppress(FileError, UnicodeError):  # it is worked out again next time
            write_json(cache, entries, indent=None, sync=False)
    return text


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(cache: Path) -> dict[str, object]:
    try:
        return read_json_object(cache, limit=_LARGEST)
    except FileError:
        return {}
