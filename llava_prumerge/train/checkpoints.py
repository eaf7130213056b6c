"""Checkpoints that are whole or not there: written aside, sealed by a manifest of sizes and hashes, then renamed.

    runs/NAME/checkpoint.unfinished/checkpoint-20   while it is written
    runs/NAME/checkpoint-20/manifest.json           written last, of every file: its size and SHA-256
    runs/NAME/checkpoint-20                         the name appears at once, by a rename

A name alone therefore says that everything had been written; the manifest says that it is still what was written. What is deleted
loses its name first. A checkpoint may be a link to a folder elsewhere: the link is what is removed. Imports nothing heavy: the
launcher asks before any rank starts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.ground.errors import FileError, InputError, naming
from llava_prumerge.ground.files import remove_folder, sync_folder, write_json
from llava_prumerge.ground.reading import read_json_object

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
MANIFEST_FILE = "manifest.json"
STATE_FILE = "trainer_state.json"
STAGING_FOLDER = "checkpoint.unfinished"


class CheckpointError(InputError):
    """A checkpoint that could not be written or cannot be continued from; one line for the person who started the run."""


@dataclass(frozen=True)
class Digest:
    """What a file was when it was written.

    Attributes:
        size: bytes.
        sha256: of its content.
    """

    size: int
    sha256: str


Digests = dict[str, Digest]


def step_of(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def is_named(path: Path) -> bool:
    """Whether a path has a checkpoint's name."""
    return path.name.startswith(PREFIX) and path.name.removeprefix(PREFIX).isdecimal()


def list_checkpoints(run: Path) -> list[Path]:
    """The folders of a run that have a checkpoint's name, oldest first, whatever they hold."""
    return sorted((path for path in run.glob(f"{PREFIX}*") if is_named(path) and path.is_dir()), key=step_of)


def list_files(checkpoint: Path) -> list[str]:
    """Everything a manifest covers, as sorted paths inside the folder."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for path in files if (name := path.relative_to(checkpoint).as_posix()) != MANIFEST_FILE)


def digest_files(checkpoint: Path, names: Iterable[str], sync: bool = False) -> Digests:
    """Read files and hash them; a file that is missing is left out.

    Args:
        sync: also wait until the disk has each of them, before a rename gives the folder its name.
    """
    found = {}
    for name in names:
        path = checkpoint / name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            if sync:
                os.fsync(file.fileno())
            found[name] = Digest(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return found


def seal(checkpoint: Path, digests: Mapping[str, Digest], world_size: int) -> None:
    """Write the manifest, the last file of a checkpoint."""
    files = {name: vars(digest) for name, digest in sorted(digests.items())}
    content = {"step": step_of(checkpoint), "world_size": world_size, "files": files}
    write_json(checkpoint / MANIFEST_FILE, content, indent=1)
    for folder in {checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())}:
        sync_folder(folder)


def publish(staged: Path, run: Path) -> Path:
    """Give a sealed checkpoint its name. A folder of that name is a faulty one that resuming skipped, and goes. -> the checkpoint"""
    final = run / staged.name
    if os.path.lexists(final):
        discard(final)
    staged.rename(final)
    sync_folder(run)
    shutil.rmtree(staged.parent, ignore_errors=True)
    return final


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, its name first: a kill half-way must not leave a part of it under that name.

    Raises:
        FileError: it cannot be deleted.
    """
    if checkpoint.is_symlink():
        with naming(checkpoint, "cannot be removed"):
            checkpoint.unlink()
    else:
        remove_folder(checkpoint)


def rotate(run: Path, newest: Path, limit: int | None) -> None:
    """Remove checkpoints until `limit` are left. The one just written stays, whatever the others are called.

    One that cannot be removed, as it is protected, is named and stays: it is no reason to stop training. A folder with a later step belongs to a future that this run has left (a faulty checkpoint it skipped): it goes first.
    """
    if limit is None:
        return
    others = [path for path in list_checkpoints(run) if path != newest]
    later = [path for path in others if step_of(path) > step_of(newest)]
    earlier = [path for path in others if step_of(path) < step_of(newest)]
    remove_leftovers(run)
    for path in [*later, *earlier][: max(len(others) - limit + 1, 0)]:
        try:
            discard(path)
        except FileError as error:
            logger.warning("%s; it stays", error)


def remove_leftovers(run: Path) -> None:
    """Delete what a kill has left of checkpoints that were being deleted."""
    for left in run.glob(f".{PREFIX}*.removed"):
        shutil.rmtree(left, ignore_errors=True)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest's content.

    Raises:
        CheckpointError: there is none, or it is torn.
    """
    file = checkpoint / MANIFEST_FILE
    if not file.is_file():
        raise CheckpointError(f"it has no {MANIFEST_FILE}, so writing it was never finished")
    try:
        content = read_json_object(file)
        files = content["files"].items()
        content["files"] = {name: Digest(int(entry["size"]), str(entry["sha256"])) for name, entry in files}
        content["world_size"], content["step"] = int(content["world_size"]), int(content["step"])
    except (FileError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"its {MANIFEST_FILE} cannot be read") from error
    return content


def find_fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be continued from as far as names and sizes tell, which takes no time; or None."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError as error:
        return str(error)
    files: Digests = manifest["files"]
    if is_named(checkpoint) and manifest["step"] != step_of(checkpoint):
        return f"its {MANIFEST_FILE} is of step {manifest['step']}"
    if STATE_FILE not in files:
        return f"its {MANIFEST_FILE} does not list {STATE_FILE}"
    for name, written in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written.size:
            return f"{name} has {path.stat().st_size} bytes of {written.size}"
    return None


def find_change(checkpoint: Path, found: Mapping[str, Digest]) -> str | None:
    """The first file that is not what the manifest of a checkpoint without a fault says, or None.

    Args:
        found: what was read of every file.
    """
    for name, written in read_manifest(checkpoint)["files"].items():
        if found.get(name) != written:
            return f"{name} is not what was written (SHA-256)"
    return None


def read_fault(checkpoint: Path) -> str | None:
    """Both, by reading every file."""
    return find_fault(checkpoint) or find_change(checkpoint, digest_files(checkpoint, list_files(checkpoint)))


def newest_sound(
    checkpoints: Sequence[Path], examine: Callable[[Path], str | None]
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint without a fault, and the later ones with theirs.

    Args:
        checkpoints: oldest first.
        examine: a checkpoint's fault, or None.
    """
    skipped: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoints):
        fault = examine(checkpoint)
        if fault is None:
            return checkpoint, skipped
        skipped.append((checkpoint, fault))
    return None, skipped


def check_room(run: Path) -> None:
    """Refuse to begin a checkpoint that the disk has no room for, as far as the last one tells.

    Raises:
        CheckpointError: with what is needed and what there is.
    """
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            manifest = read_manifest(checkpoint)
        except CheckpointError:
            continue  # a faulty one, which resuming has passed over
        needed = sum(digest.size for digest in manifest["files"].values())
        free = shutil.disk_usage(run).free
        if free < needed:
            raise CheckpointError(f"a checkpoint takes {needed / 1e6:,.1f} MB, the disk has {free / 1e6:,.1f} MB left")
        return
