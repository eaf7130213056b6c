"""Writes generated data: a killed run leaves nothing half written, and a second run finds that there is nothing to do.

Everything is made in a staging folder beside its destination and moved in place at the end; the manifest, which names
the settings and a digest of the code that made the data, goes last.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

from playground.pocket.scenes import Scene
from playground.pocket.world import POCKET, World

MANIFEST = "manifest.json"
SCENES = "scenes.json"
FORMATS = {".png": "PNG", ".jpg": "JPEG"}
OPTIONS = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
}  # full colour resolution: words and edges stay sharp


@dataclass(frozen=True)
class Picture:
    """An image file to be made: its path below the image folder, what it shows and the seed of its jitter."""

    path: str
    scene: Scene
    seed: int = 0


def encode_picture(scene: Scene, seed: int, suffix: str, world: World = POCKET) -> bytes:
    """The bytes of a scene's image file."""
    kind = FORMATS[suffix]
    buffer = BytesIO()
    world.paint(scene, seed).save(buffer, kind, **OPTIONS[kind])
    return buffer.getvalue()


def _save_one(task: tuple[Path, Picture, World]) -> None:
    folder, picture, world = task
    path = folder / picture.path
    path.write_bytes(encode_picture(picture.scene, picture.seed, path.suffix, world))


def save_pictures(folder: Path, pictures: Sequence[Picture], workers: int = 2, world: World = POCKET) -> None:
    """Renders and saves pictures below a folder, in parallel when there are enough of them to be worth it."""
    for parent in {(folder / picture.path).parent for picture in pictures}:
        parent.mkdir(parents=True, exist_ok=True)
    tasks = [(folder, picture, world) for picture in pictures]
    if workers < 2 or len(tasks) < 500:
        for task in tasks:
            _save_one(task)
        return
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_save_one, tasks, chunksize=100))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file; a list gets one line per entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list) and value:
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    path.write_text(text, "utf-8")


def write_json_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def write_scenes(path: Path, pictures: Sequence[Picture]) -> None:
    """Writes what every picture shows, as [scene key, seed]: for checks, no benchmark or training reads it."""
    write_json(path, {picture.path: [picture.scene.key, picture.seed] for picture in pictures})


def digest(*modules: ModuleType) -> str:
    """A digest of the source of modules: data that other code made is made anew."""
    joined = "\0".join(inspect.getsource(module) for module in modules)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def is_current(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds finished data made with exactly these settings."""
    try:
        found = json.loads((out / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return found.get("settings") == settings


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Gives a staging folder whose entries replace those of `out` when the block ends well; it is removed in any case.

    The manifest of `out` is withdrawn before the first entry is replaced, and a new one, if made, is moved last.
    """
    out.mkdir(parents=True, exist_ok=True)
    staging = out / f".building-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        (out / MANIFEST).unlink(missing_ok=True)
        for entry in sorted(staging.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
            target = out / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
