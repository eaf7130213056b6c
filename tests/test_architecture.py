"""docs/architecture.md lists every source file with what the file says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "scripts" / "architecture_tables.py"
LONGEST = 370


def test_the_tables_are_those_of_the_tree() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}; run python scripts/architecture_tables.py"


def test_files_stay_readable() -> None:
    files = [path for name in ("llava_prumerge", "playground", "scripts") for path in (ROOT / name).rglob("*.py")]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}
    long = {path: count for path, count in lines.items() if count > LONGEST}
    assert len(lines) > 200 and not long, f"files of more than {LONGEST} lines: {long}"
