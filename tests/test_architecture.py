"""docs/architecture.md lists every source file, once, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
ROOTS = ("llava_prumerge", "eval", "playground/pocket", "scripts")
SUFFIXES = (".py", ".sh", ".sbatch")
GENERATED = ("playground/pocket/data/", "playground/pocket/work/", "playground/pocket/backbones/")


def source_files() -> set[str]:
    """Python and shell files of the packages, empty ones apart."""
    found = set()
    for root in ROOTS:
        for path in (ROOT / root).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in SUFFIXES and not name.startswith(GENERATED) and path.stat().st_size:
                found.add(name)
    return found


def listed_files() -> list[str]:
    """Paths at the start of the document's table rows."""
    return re.findall(r"^\| `([^`]+\.(?:py|sh|sbatch))` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_document_lists_each_file_once_and_only_files_that_exist() -> None:
    listed = listed_files()
    assert len(listed) == len(set(listed))
    assert set(listed) == source_files()


def test_files_stay_readable() -> None:
    long = {
        path: lines for path in source_files() if (lines := len((ROOT / path).read_text("utf-8").splitlines())) > 370
    }
    assert not long, f"files much over 350 lines: {long}"
