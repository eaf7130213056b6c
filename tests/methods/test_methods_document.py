"""docs/methods.md has a section for every vision reducer, docs/methods_decoder.md tells of every pruner; fields and defaults are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from decoder_tokens import PRUNERS
from vision_tokens import REDUCERS

from llava_prumerge.methods.registry import discover, fields_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT = (DOCS / "methods.md").read_text(encoding="utf-8")
DECODER = (DOCS / "methods_decoder.md").read_text(encoding="utf-8")
OF_ALL = set(re.findall(r"`(\w+)`", next(line for line in DOCUMENT.splitlines() if "of every reducer" in line)))
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", [name for name in REDUCERS if name in SECTIONS])
def test_every_field_is_named(name: str) -> None:
    told = set(re.findall(r"`(\w+)`", SECTIONS[name].partition("Fields:")[2]))
    missing = set(fields_of(discover()[name])) - told - OF_ALL
    assert not missing, f"docs/methods.md does not tell of {name}'s {sorted(missing)}"


@pytest.mark.parametrize("name", [name for name in REDUCERS if name in SECTIONS])
def test_numbers_in_brackets_are_the_defaults(name: str) -> None:
    fields = fields_of(discover()[name])
    for key, value in re.findall(r"`(\w+)` \(([\d./]+)[;:,)]", SECTIONS[name]):
        assert str(fields[key].default) == value, f"{name}.{key}"


def test_sections_are_methods_of_this_repository() -> None:
    written = {name for name, text in SECTIONS.items() if text.strip()}
    assert written <= set(discover())


@pytest.mark.parametrize("name", [name for name in PRUNERS if f"| `{name}` |" in DECODER])
def test_every_pruner_and_its_fields_are_told_of(name: str) -> None:
    assert f"| `{name}` |" in DECODER
    missing = set(fields_of(discover()[name])) - set(re.findall(r"`(\w+)`", DECODER))
    assert not missing, f"docs/methods_decoder.md does not tell of {name}'s {sorted(missing)}"


def test_the_papers_methods_are_told_of() -> None:
    """A new method needs no page of its own: `llava-prumerge methods NAME` tells its settings."""
    assert len(SECTIONS) >= 15 and len([name for name in PRUNERS if f"| `{name}` |" in DECODER]) >= 6
