"""`make reproduce` says whether its tables are those of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from playground.pocket import reproduce

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", reproduce.PAGES)
def test_a_page_is_recognised_and_one_digit_is_enough_to_tell(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert reproduce.compared(text).startswith(f"they are those of {page}")
    value = next(line for line in reproduce.rows_of(text) if line.startswith("| + PruMerge |"))
    changed = text.replace(value, value.replace(" n = 520", "1 n = 520", 1))
    assert changed != text and "none of" in reproduce.compared(changed)
