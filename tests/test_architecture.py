"""docs/architecture.md lists every source file with what the file says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
TOOL = ROOT / "scripts" / "architecture_tables.py"
LONGEST = 350


def test_the_tables_are_those_of_the_tree() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}; run python scripts/architecture_tables.py"


def test_files_stay_readable() -> None:
    files = [path for name in ("llava_prumerge", "playground", "scripts") for path in (ROOT / name).rglob("*.py")]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}
    long = {path: count for path, count in lines.items() if count > LONGEST}
    assert len(lines) > 200 and not long, f"files of more than {LONGEST} lines: {long}"


MOST = {"image": 22, "setting": 14, "record": 16, "checkpoint": 13}
"""Files on each way through the code, which docs/architecture.md draws; fewer are welcome, more are not."""


def files_on_the_way(thing: str) -> list[str]:
    """The files below llava_prumerge/ that docs/architecture.md lists for the way of a thing, in order."""
    page = DOCUMENT.read_text("utf-8").split("## Four ways through the code")[1].split("\n## ")[0]
    way = next(part for part in page.split("\n### ")[1:] if thing in part.splitlines()[0])
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \| .+ \|$", way, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    return [name for _, name in rows]


@pytest.mark.parametrize("thing", MOST)
def test_the_ways_through_the_code_exist(thing: str) -> None:
    """That those of an image and of a setting name what really runs is held by tests/eval/test_ways.py."""
    names = files_on_the_way(thing)
    assert len(set(names)) == len(names)
    assert not [name for name in names if not (ROOT / "llava_prumerge" / name).is_file()]
    assert 10 < len(names) <= MOST[thing]
