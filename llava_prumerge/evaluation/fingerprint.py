"""What made a result: a model's fingerprint, the code's revision and libraries' versions, and the names of methods."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llava_prumerge.ground.revision import command_line, library_versions, revision_text

WEIGHTS = (".safetensors", ".bin", ".pt")
SMALL = (".json", ".model", ".txt", ".jinja")
IGNORED = frozenset(
    {"trainer_state.json", "environment.json", "metrics.jsonl", "all_results.json", "train_results.json"}
)
BLOCK, BLOCKS = 1 << 16, 64


def fingerprint(model: str) -> str:
    """A hash of a model folder: small files whole, weight files by their size and 64 blocks spread over them.

    Training changes all weights a little, so blocks tell models apart, and a 13B model needs no minute of reading. A
    folder of adapters includes the models that its base.json names. For a name on the Hub it is the name: give a folder
    to be sure.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"hub:{model}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in IGNORED or not path.is_file() or path.suffix not in (*WEIGHTS, *SMALL):
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(sample_blocks(path) if path.suffix in WEIGHTS else path.read_bytes())
    for part in base_folders(folder):
        digest.update(fingerprint(part).encode())
    return digest.hexdigest()


def base_folders(folder: Path) -> list[str]:
    """The folders that an adapter's base.json names; each entry holds a path and the same path seen from the adapter."""
    path = folder / "base.json"
    if not path.is_file():
        return []
    found = []
    for entry in json.loads(path.read_text("utf-8")).values():
        if isinstance(entry, dict) and "path" in entry:
            places = (folder / entry.get("from_here", entry["path"]), Path(entry["path"]))
            found += [str(place) for place in places if place.is_dir() and place != folder][:1]
    return found


def sample_blocks(path: Path) -> bytes:
    """64 blocks of a file, evenly spread, the first and the last included; a small file whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= BLOCK * BLOCKS:
            return hashlib.sha256(file.read()).digest()
        digest = hashlib.sha256()
        for number in range(BLOCKS):
            file.seek((size - BLOCK) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.digest()


def describe_environment() -> dict[str, Any]:
    """The command, the code's revision and the libraries' versions."""
    versions = library_versions()
    return {
        "command": command_line(),
        "revision": revision_text(),
        "versions": {name: version for name, version in versions.items() if version is not None},
    }
