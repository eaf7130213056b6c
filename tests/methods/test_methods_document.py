"""docs/methods.md has a section for every vision reducer, and each names the method's fields with their defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vision_tokens import REDUCERS

from llava_prumerge.methods.registry import discover, fields_of

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", [*REDUCERS, "fastv"])
def test_every_field_is_named(name: str) -> None:
    told = set(re.findall(r"`(\w+)`", SECTIONS[name].partition("Fields:")[2]))
    missing = set(fields_of(discover()[name])) - told
    assert not missing, f"docs/methods.md does not tell of {name}'s {sorted(missing)}"


@pytest.mark.parametrize("name", [*REDUCERS, "fastv"])
def test_numbers_in_brackets_are_the_defaults(name: str) -> None:
    fields = fields_of(discover()[name])
    for key, value in re.findall(r"`(\w+)` \(([\d./]+)[;:,)]", SECTIONS[name]):
        assert str(fields[key].default) == value, f"{name}.{key}"


def test_sections_are_methods_of_this_repository() -> None:
    written = {name for name, text in SECTIONS.items() if text.strip()}
    assert written <= set(discover())
