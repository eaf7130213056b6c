"""Where the real benchmark files lie, and a small world of benchmark files in their official formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EVALDATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "evaldata"


@pytest.fixture
def real() -> Callable[[str], Path]:
    """The path of a real benchmark file; the test skips where the folder is absent."""

    def locate(name: str) -> Path:
        if not EVALDATA.is_dir():
            pytest.skip("../shared/evaldata with the real benchmark files is absent")
        return EVALDATA / name

    return locate


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes text, JSON or (from a list, to a name in .jsonl) JSON lines below the test's folder."""

    def save(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, "utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(record) + "\n" for record in content), "utf-8")
        else:
            path.write_text(json.dumps(content), "utf-8")
        return path

    return save
