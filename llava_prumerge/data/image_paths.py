"""Where an image that a record names may lie: inside its folder, in a trusted one, or among a Hub cache's own files.

A record file comes from elsewhere, so its paths do not lead out of the image folder: not by '..', not by an absolute
path, and by a link only where somebody said so. Two kinds of links are in order: those whose target lies in a folder
named by `trusted=` (another disk), and, without any setting, those by which the Hugging Face cache points from a
snapshot to the same repository's blobs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from llava_prumerge.data.errors import SampleError
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import shown

AnyPath = str | os.PathLike[str]

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of two letters or more: one is a drive
_REPOSITORY = re.compile(r"(datasets|models|spaces)--.+")


class ImageError(SampleError):
    """An image that is refused, by its path or by its content."""


class TrustError(InputError):
    """A trusted folder that is none; the message is one line."""


def trusted_folders(folders: Sequence[AnyPath]) -> tuple[str, ...]:
    """The folders of a setting `trusted`, as they were given.

    Raises:
        TrustError: one of them is no folder.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise TrustError(f"trusted={os.fspath(folder)}: no such folder; it must be one that links may lead to")
    return tuple(os.fspath(folder) for folder in folders)


def contained_path(root: AnyPath, relative: str, trusted: Sequence[AnyPath] = (), folders: bool = False) -> Path:
    """The file that a record's path leads to, links followed.

    Args:
        root: the image folder.
        relative: the path as the record has it, with '/'.
        trusted: folders outside `root` that links inside it may lead to.
        folders: it may be a folder too, as one of frames is.

    Raises:
        ImageError: the path leaves `root`, by its words or by a link that nobody trusts, or leads to no file.
    """
    name = shown(relative)
    if not relative or "\0" in relative:
        raise ImageError(f"bad path: {name}")
    if _ADDRESS.match(relative):
        raise ImageError(f"bad path: {name} is an address; a record names a file in the image folder")
    windows = PureWindowsPath(relative)
    if PurePosixPath(relative).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ImageError(f"path escapes: {name} must be relative and without '..'")
    try:
        path = Path(root, relative).resolve(strict=True)
    except UnicodeEncodeError as error:
        raise ImageError(
            f"bad path: {name} cannot be a file's name where names are in {sys.getfilesystemencoding()}; "
            "set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ImageError(f"missing: {name} in {os.fspath(root)!r}") from error
    if not any(path.is_relative_to(folder) for folder in _allowed(os.fspath(root), *map(os.fspath, trusted))):
        raise ImageError(
            f"path escapes: {name} is a link out of {os.fspath(root)!r} to {str(path)!r}; "
            f"if that is meant, trust it: trusted={path.parent}"
        )
    if not path.is_file() and not (folders and path.is_dir()):
        raise ImageError(f"missing: {name} in {os.fspath(root)!r} is not a file")
    return path


@lru_cache(maxsize=32)
def _allowed(*folders: str) -> tuple[Path, ...]:
    """Those folders, and for one in a Hub cache's snapshot the folder that the snapshot's links lead to."""
    found = []
    for folder in folders:
        path = Path(folder).resolve()
        found.append(path)
        for above in (path, *path.parents):
            if above.parent.name == "snapshots" and _REPOSITORY.fullmatch(above.parent.parent.name):
                found.append((above.parent.parent / "blobs").resolve())
    return tuple(found)


def renamed_image(root: AnyPath, relative: str, trusted: Sequence[AnyPath] = ()) -> str | None:
    """A path that differs from a missing one in its extension alone and is there; None where there is none.

    OCR-VQA's scripts save `7.gif`, LLaVA's records say `7.jpg`.
    """
    for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)):
        other = os.path.splitext(relative)[0] + suffix
        try:
            contained_path(root, other, trusted)
        except ImageError:
            continue
        return other
    return None
