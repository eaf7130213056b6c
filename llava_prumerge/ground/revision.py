"""What code ran: the git revision of a folder, and the versions of libraries, read without importing them."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
"""The folder that holds the package: a checkout, or the place that pip installed it to."""

LIBRARIES = (
    *("torch", "transformers", "accelerate", "peft", "deepspeed", "datasets"),
    *("tokenizers", "safetensors", "numpy", "pillow"),
)
"""What results may depend on."""


@dataclass(frozen=True)
class Revision:
    """A commit.

    Attributes:
        commit: its hash in full.
        changed: whether tracked files differ from it.
    """

    commit: str
    changed: bool

    def __str__(self) -> str:
        return self.commit + ("+" if self.changed else "")


def code_revision(folder: Path = CODE) -> Revision | None:
    """The commit of the code in a folder; None where git cannot tell, as in an installed package."""
    try:
        if not (folder / ".git").exists():  # site-packages may lie within somebody else's repository
            return None
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return Revision(commit, bool(changed))


def revision_text(folder: Path = CODE) -> str | None:
    """The commit of the code in a folder, "+" where tracked files differ from it; None where git cannot tell."""
    found = code_revision(folder)
    return None if found is None else str(found)


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str | None]:
    """Versions of Python and of installed libraries, None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def command_line() -> list[str]:
    """How this process was started, beginning with the name of the Python program."""
    return [Path(sys.executable).name, *sys.argv]
