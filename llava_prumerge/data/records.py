"""LLaVA's records: brought to one form, and memory-mapped from Arrow.

The Arrow file is written once per content of the JSON file and shared by all ranks and workers: 665k records cost
each process an index, not a gigabyte. A record that is not in LLaVA's format becomes a row that says what is wrong with
it, so that one of them neither hides behind the others nor keeps them from being used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.record_files import read_records
from llava_prumerge.data.record_keys import foreign_media, unread_keys
from llava_prumerge.data.region_format import read_regions
from llava_prumerge.data.rounds import image_paths
from llava_prumerge.ground.caching import VARIABLE
from llava_prumerge.ground.errors import FileError, naming
from llava_prumerge.ground.files import whole_file
from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.reading import file_digest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Part of the cache key: to be raised whenever what is stored of a record changes.
_CACHE_VERSION = 5
NO_VIDEOS = "video: this model takes images alone, and the record has a video"
_ROWS_PER_BATCH = 1000
_LONGEST_ID = 200


class RecordError(SampleError):
    """A record that is not in LLaVA's format."""


def normalise_record(raw: Any, index: int) -> dict[str, Any]:
    """Brings a raw record to `id` (str), `image` and `video` (lists of paths) and `conversations` (`from`, `value`);
    `regions` (`box`, `text`) is None where there are none that can be read.

    Args:
        raw: as read.
        index: its position, which names a record without an id ("#12").

    Returns:
        The record, and under `notes` what of it is not read: "kind: detail" each.

    Raises:
        RecordError: it is not in LLaVA's format, or shows media that we would not.
    """
    sample_id = f"#{index}"
    if not isinstance(raw, dict):
        raise RecordError(f"format: a record must be an object, not {type(raw).__name__}", sample_id)
    if raw.get("id") is not None:
        sample_id = str(raw["id"]).encode(errors="backslashreplace").decode()[:_LONGEST_ID]
    if foreign := foreign_media(raw):
        raise RecordError(f"media: {foreign}", sample_id)
    turns, image, video = raw.get("conversations"), raw.get("image"), raw.get("video")
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        hint = "; it has 'messages', which is another format" if turns is None and "messages" in raw else ""
        raise RecordError(f"format: 'conversations' must be a list of {{'from': text, 'value': text}}{hint}", sample_id)
    for key, value in (("image", image), ("video", video)):
        if not (value is None or isinstance(value, str)) and not _is_path_list(value):
            raise RecordError(f"format: {key!r} must be a path or a list of paths, not {shown(value)}", sample_id)
    notes = [f"empty image: 'image' is {shown(image)}, taken as none"] if image in ("", []) else []
    notes += [f"empty video: 'video' is {shown(video)}, taken as none"] if video in ("", []) else []
    if unread := unread_keys(raw):
        notes.append(f"unknown key: {shown(', '.join(unread))} is not read")
    turns = [{"from": turn["from"], "value": turn["value"]} for turn in turns]
    regions = None
    if raw.get("regions") is not None:
        try:
            regions = read_regions(raw["regions"])
        except ValueError as error:  # they are one objective's matter; to all others the record is sound
            notes.append(f"regions: {error}")
    try:
        json.dumps([turns, image, video, regions], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"format: the text is not valid Unicode ({error.reason})", sample_id) from None
    notes = [note.encode(errors="backslashreplace").decode() for note in notes]
    media = {key: image_paths(raw, key) for key in ("image", "video")}
    return {"id": sample_id, **media, "conversations": turns, "regions": regions, "notes": notes}


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)


def _is_path_list(image: Any) -> bool:
    return isinstance(image, list) and all(isinstance(path, str) for path in image)


def default_cache_dir() -> Path:
    """`$LLAVA_PRUMERGE_CACHE`, or `llava_prumerge` under `$HF_HOME` or its default."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "llava_prumerge" / "records"


def open_records(json_path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Opens a record file as a memory-mapped `datasets.Dataset`, writing its Arrow file first if there is none.

    Columns: `id`, `image` and `video` (paths), `conversations`, `regions` (or None), `images` and `videos` (their numbers), `text_bytes`, `notes` ("kind: detail" of
    what is not read), and `fault`: None, or why the record is not in LLaVA's format, in which case it has no
    conversations.
    """
    return open_arrow(arrow_file(json_path, cache_dir))


def open_arrow(path: str | os.PathLike[str]) -> Dataset:
    """Memory-maps a file that `arrow_file` wrote.

    Raises:
        FileError: it is damaged.
    """
    import pyarrow as pa
    from datasets import Dataset as ArrowDataset

    try:
        return ArrowDataset.from_file(os.fspath(path))
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise FileError(path, f"cannot be read: {' '.join(str(error).split())[:200]}") from error


def arrow_file(json_path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The Arrow file of a record file, written first if there is none for this content.

    Ranks that start together are safe: one writes under a lock while the others wait, and a file gets its name only
    when it is whole. One that a disk has damaged since is written anew.

    Raises:
        FileError: the record file cannot be read, or the cache cannot be written: with the variable that names another.
        RecordFileError: the record file is none.
    """
    json_path = Path(json_path)
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    digest = file_digest(json_path)
    target = folder / f"{json_path.stem}-{digest[:32]}-v{_CACHE_VERSION}.arrow"
    if not _is_sound(target):
        try:
            if folder.exists() and not folder.is_dir():
                raise FileError(folder, "cannot be written: it is a file, not a folder", errno.ENOTDIR)
            with naming(folder, "cannot be written"):
                folder.mkdir(parents=True, exist_ok=True)
            with _one_writer(target):
                if not _is_sound(target):
                    _write_arrow(json_path, target)
        except FileError as error:
            raise FileError(error.filename, f"{error.reason}; ${VARIABLE} names another cache", error.errno) from error
    return target


def _is_sound(target: Path) -> bool:
    """Whether there is an Arrow file that opens; its rows are not looked at."""
    if not target.exists():
        return False
    try:
        open_arrow(target)
    except FileError as error:
        logger.warning("%s; it is written anew", error)
        return False
    return True


@contextlib.contextmanager
def _one_writer(target: Path) -> Iterator[None]:
    """Wait for others that write the same. On a file system without locks all write; the last rename wins."""
    from filelock import FileLock

    lock = FileLock(f"{target}.lock")
    try:
        with naming(target, "cannot be written"):
            lock.acquire()
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _write_arrow(json_path: Path, target: Path) -> None:
    import pyarrow as pa

    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    region = pa.struct([("box", pa.list_(pa.float64())), ("text", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.list_(pa.string())),
            ("video", pa.list_(pa.string())),
            ("conversations", pa.list_(turn)),
            ("regions", pa.list_(region)),
            ("images", pa.int32()),
            ("videos", pa.int32()),
            ("text_bytes", pa.int32()),
            ("fault", pa.string()),
            ("notes", pa.list_(pa.string())),
        ]
    )
    with whole_file(target) as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in _batches(json_path):
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def _batches(json_path: Path) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for index, raw in enumerate(read_records(json_path)):
        batch.append(_row(raw, index))
        if len(batch) == _ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _row(raw: Any, index: int) -> dict[str, Any]:
    try:
        record, fault = normalise_record(raw, index), None
    except RecordError as error:
        record = {"id": error.sample_id, "image": [], "video": [], "conversations": [], "regions": None, "notes": []}
        fault = error.reason.encode(errors="backslashreplace").decode()
    text_bytes = sum(len(turn["value"].encode()) for turn in record["conversations"])
    counts = {"images": len(record["image"]), "videos": len(record["video"])}
    return {**record, **counts, "text_bytes": text_bytes, "fault": fault}
