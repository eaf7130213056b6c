"""No file outside `methods/` knows a method by its name: what a method costs, takes and leaves, it tells itself."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = re.compile(r"atp|fastv|vtw|prumerge|pyramid")
OURS = re.compile(r"llava[_-]prumerge|matplotlib|prumerge_llava|[\"'(`]prumerge_(?=[\"'.<])")
"""The package's and its model types' names, and a library's: no names of methods."""


def test_only_methods_know_methods() -> None:
    found = []
    for path in sorted((ROOT / "llava_prumerge").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith("llava_prumerge/methods/"):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if NAMES.search(OURS.sub("", line)):
                found.append(f"{place}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_the_rule_sees_a_name() -> None:
    assert NAMES.search(OURS.sub("", 'if block["name"] == "fastv":')) and not NAMES.search(
        OURS.sub("", "from llava_prumerge.model import x; import matplotlib")
    )
