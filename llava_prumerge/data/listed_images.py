"""Pictures that a JSON file names one by one, as OCR-VQA's list does: each fetched once, all saved as .jpg, as LLaVA does."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from llava_prumerge.data.fetch import FetchError, Unreachable, read_address
from llava_prumerge.data.image_paths import ImageError
from llava_prumerge.data.images import MAX_PIXELS, decode_image
from llava_prumerge.data.record_files import read_records
from llava_prumerge.data.records import RecordError, normalise_record
from llava_prumerge.data.rounds import image_paths
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import write_bytes
from llava_prumerge.ground.reading import read_json

THREADS = 8
MAX_BYTES = 32 << 20
_NAME = re.compile(r"[\w-]+")


@dataclass
class Tally:
    """What became of the pictures: fetched, there already, and not to be had, with the reason."""

    fetched: int = 0
    there: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def read_list(path: Path, wanted: set[str] | None = None) -> dict[str, str]:
    """Addresses by name, from {name: {"imageURL": address}}; of `wanted` names only, where given."""
    try:
        content = read_json(path)
        listed = {name: entry["imageURL"] for name, entry in content.items() if wanted is None or name in wanted}
    except FileError as error:
        raise FetchError(str(error)) from error
    except (AttributeError, TypeError, KeyError) as error:
        raise FetchError(f"{path} is no list of pictures, {{name: {{'imageURL': address}}}} ({error!r})") from error
    for name, url in listed.items():
        if not _NAME.fullmatch(name) or not isinstance(url, str):
            raise FetchError(f"{path}: {name!r}: {url!r} cannot be a file name and its address")
    return listed


def names_in_records(records: Path, folder: str) -> set[str]:
    """The names of the pictures in `folder` that a record file uses."""
    return {Path(path).stem for path in _paths(records) if Path(path).parent.as_posix() == folder}


def _paths(records: Path) -> Iterator[str]:
    for index, raw in enumerate(read_records(records)):
        try:
            yield from image_paths(normalise_record(raw, index))
        except RecordError:
            continue  # the check of the records reports it


def fetch_listed(listed: dict[str, str], folder: Path, advance: Callable[[int], object] = lambda count: None) -> Tally:
    """Fetches what is not there yet; a picture that cannot be had is counted and the rest goes on.

    Raises:
        Unreachable: not even the first one's server answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    todo = []
    for name, url in listed.items():
        if (folder / f"{name}.jpg").exists():
            tally.there += 1
            advance(1)
        else:
            todo.append((name, url))

    def attempt(task: tuple[str, str]) -> tuple[str, FetchError | None]:
        try:
            fetch_picture(task[1], folder / f"{task[0]}.jpg")
        except FetchError as error:
            return task[0], error
        return task[0], None

    with ThreadPoolExecutor(THREADS) as pool:
        for name, error in _first_alone(attempt, todo, pool):
            if error is None:
                tally.fetched += 1
            elif isinstance(error, Unreachable) and not tally.fetched and not tally.failed:
                raise error
            else:
                tally.failed[name] = str(error)
            advance(1)
    return tally


def _first_alone(
    attempt: Callable[[tuple[str, str]], tuple[str, FetchError | None]],
    tasks: list[tuple[str, str]],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, FetchError | None]]:
    """Without a network one attempt is enough to know it."""
    if tasks:
        yield attempt(tasks[0])
        yield from pool.map(attempt, tasks[1:])


def fetch_picture(url: str, target: Path) -> None:
    """Saves a picture as the server sends it, whatever its format; what is none is refused."""
    content = read_address(url, MAX_BYTES)
    try:
        decode_image(io.BytesIO(content), "what the server sends", MAX_PIXELS // THREADS)
    except ImageError as error:
        raise FetchError(f"{url}: no picture ({error.reason})") from error
    write_bytes(target, content, sync=False)
