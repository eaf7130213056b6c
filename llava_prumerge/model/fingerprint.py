"""A model's fingerprint: what trains is read to the last byte, the rest sampled so that a change of a hundredth cannot pass.

Per weight file: a file of trained parts (projector, adapters, method) and any file up to 64 MiB is read whole. Of a larger one
the header and the tensors of projector, method and adapters are read whole, and 2048 blocks of 4 KiB besides, one in each 2048th
of the file, from a place that the file's size decides.

The odds: a change of a share s of the bytes, made without regard to those places, meets the first byte of the block of each 2048th
with the probability of the share changed there, so that it is missed with (1 - s)^2048 at most: for a hundredth of the file 1.2e-9,
for a thousandth 0.13. A change in one piece is found for certain from a 1000th on: it covers one of the 2048ths.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from llava_prumerge.ground.caching import remember
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.reading import file_digest, read_json_object
from llava_prumerge.model.weight_files import SAFETENSORS, LoadingError, read_header, whole_files

WEIGHTS = (SAFETENSORS, ".bin", ".pt")
SMALL = (".json", ".model", ".txt", ".jinja")
IGNORED = frozenset(  # what a run or a release says of itself: the model is the same with and without
    [
        "trainer_state.json",
        "environment.json",
        "metrics.jsonl",
        "all_results.json",
        "train_results.json",
        "finished.json",
        "manifest.json",
        "made_from.json",
        "release.json",
    ]
)
PART_FILES = ("mm_projector", "adapter_model", "method", "non_lora_trainables")
PART_KEYS = ("multi_modal_projector.", "mm_projector.", "reducer.", "pruner.", "lora_")
VERSION = "2:"  # begins a fingerprint; earlier ones, which looked at less, have nothing there
WHOLE, BLOCKS, BLOCK = 1 << 26, 2048, 1 << 12
_PIECE = 1 << 22


def fingerprint(model: str | os.PathLike[str]) -> str:
    """A hash of what a model folder, or a single weight file, holds.

    Files that are read as text count whole, weight files as this module's first lines say. A folder of trained parts includes the
    models that its base.json names. A name on the Hub stands for the commit that is loaded under it, where that is known.
    """
    path = Path(model)
    if path.is_file():
        return f"{VERSION}{file_fingerprint(path)}"
    if not path.is_dir():
        commit = hub_commit(os.fspath(model))
        return f"hub:{os.fspath(model)}{f'@{commit}' if commit else ''}"
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name in IGNORED or not file.is_file() or file.suffix not in (*WEIGHTS, *SMALL):
            continue
        digest.update(f"{file.name}\0".encode())
        digest.update((file_fingerprint(file) if file.suffix in WEIGHTS else file_digest(file)).encode())
    for part in base_places(path):
        digest.update(fingerprint(part).encode())
    return f"{VERSION}{digest.hexdigest()}"


def weights_fingerprint(folder: Path) -> str | None:
    """A hash of a model's weights alone, wherever they lie and whatever else stands beside them; None where there are none.

    Raises:
        LoadingError: an index of shards cannot be read.
    """
    files = whole_files(folder)
    if not all(file.is_file() for file in files):  # half-downloaded: whoever loads it will get the rest, or say so
        return None
    others = (*PART_FILES, "open_clip_")
    files += sorted(file for file in folder.glob("*") if file.name.startswith(others) and file.suffix in WEIGHTS)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file_fingerprint(file)}".encode())
    return f"{VERSION}{digest.hexdigest()}" if files else None


def hub_commit(name: str) -> str | None:
    """The commit that a name on the Hub stands for now, or offline, in the local cache; None where neither tells."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json")).parent.name
    except Exception:  # the library's errors, its HTTP client's, and what a broken connection raises
        return None


def base_places(folder: Path) -> list[str]:
    """The folders, or names on the Hub, that base.json gives; each folder as it is named, or as it lies seen from here."""
    try:
        entries = read_json_object(folder / "base.json").values()
    except FileError:
        return []
    found = []
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("hub"), str):
            found.append(entry["hub"])
        elif isinstance(entry, dict) and isinstance(entry.get("path"), str):
            places = (folder / str(entry.get("from_here", entry["path"])), Path(entry["path"]))
            found += [str(place) for place in places if place.is_dir() and place != folder][:1]
    return found


def file_fingerprint(file: Path) -> str:
    """A hash of a weight file, as this module's first lines say. Of a large one it is kept until the file changes."""
    if file.stat().st_size <= WHOLE:
        return file_digest(file)
    return remember("fingerprints-2", file, _read_file)


def _read_file(file: Path) -> str:
    if file.name.startswith(PART_FILES):
        return file_digest(file)
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for start, length in [*whole_ranges(file), *((place, BLOCK) for place in sampled_places(size))]:
            opened.seek(start)
            while length > 0 and (piece := opened.read(min(length, _PIECE))):
                digest.update(piece)
                length -= len(piece)
    return digest.hexdigest()


def whole_ranges(file: Path) -> list[tuple[int, int]]:
    """What of a safetensors file is read whole, as starts and lengths: its header, and the tensors of what trains."""
    if file.suffix != SAFETENSORS:
        return []
    try:
        entries = read_header(file)
    except LoadingError:  # whoever loads it will say so
        return []
    first = min((entry.begin for entry in entries.values()), default=0)
    parts = [entry for key, entry in sorted(entries.items()) if any(part in key for part in PART_KEYS)]
    return [(0, first), *((entry.begin, entry.end - entry.begin) for entry in parts)]


def sampled_places(size: int) -> Iterator[int]:
    """Where the sampled blocks of a file of `size` bytes begin: one in each 2048th."""
    for number in range(BLOCKS):
        start, end = size * number // BLOCKS, size * (number + 1) // BLOCKS
        chance = int.from_bytes(hashlib.sha256(json.dumps([size, number]).encode()).digest()[:8], "little")
        yield start + chance % max(end - start, 1)
