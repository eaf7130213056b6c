"""The configuration files that come with the package, found from any folder: recipes, methods, DeepSpeed settings, shapes.

In a checkout they lie in `configs/`; in an installed package beside its modules. A file of the user's own always comes
first, so `configs/train/finetune.yaml` in the folder one stands in is that file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known

CONFIGS = "configs"
KINDS = {"train": ".yaml", "method": ".yaml", "deepspeed": ".json"}
"""Folders of `configs`, and how the files in them end."""

_PACKAGE = Path(__file__).resolve().parents[1]


def configs() -> Path:
    """The folder that holds all of them."""
    inside = _PACKAGE / CONFIGS
    return inside if inside.is_dir() else _PACKAGE.parent / CONFIGS


def folder(kind: str) -> Path:
    """The folder of one kind: train, method, deepspeed, model."""
    return configs() / kind


def names(kind: str) -> list[str]:
    """What ships of a kind, by name: the path below its folder without the ending, such as `pocket/finetune`."""
    root, ending = folder(kind), KINDS[kind]
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{ending}"))


def find(kind: str, word: str | os.PathLike[str]) -> Path | None:
    """The file that a word means: a path that exists, a shipped file's name, or its path in a checkout; None for none.

    Args:
        kind: of KINDS.
        word: `pocket/finetune`, `finetune.yaml`, `configs/deepspeed/zero3.json`, `/home/me/own.yaml`.
    """
    path, ending = Path(word), KINDS[kind]
    if path.is_file():
        return path
    if path.is_absolute() or ".." in path.parts:
        return None
    if path.parts[:2] == (CONFIGS, kind):
        path = Path(*path.parts[2:])
    if path.suffix != ending:
        path = path.with_name(path.name + ending) if path.name else path
    found = folder(kind) / path
    return found if found.is_file() else None


def require(kind: str, word: str | os.PathLike[str], what: str) -> Path:
    """The same, where there has to be one.

    Args:
        what: how the message calls it: "method", "recipe".

    Raises:
        InputError: there is none; the message names those that ship.
    """
    found = find(kind, word)
    if found is None:
        raise InputError(not_there(what, word, names(kind)))
    return found


def not_there(what: str, word: str | os.PathLike[str], known: Iterable[str]) -> str:
    """One line about a word that is neither a file nor one of the names that ship."""
    path = Path(word)
    is_path = path.suffix in KINDS.values() or len(path.parts) > 1
    beginning = f"{path}: no such file; " if is_path else ""
    return beginning + not_known(what, path.stem if is_path else os.fspath(word), known)
