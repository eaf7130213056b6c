"""docs/glossary.md: every special term that the README uses is defined once, and every term it defines is used."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
TERM = re.compile(r"\*\*(.+?)\*\*")
SPECIAL = (
    *("patch", "visual token", "vision tower", "class token", "projector", "prefill", "ragged", "pocket world"),
    *("method", "reducer", "pruner", "contract", "training-free", "budget", "equivalent tokens", "method comparison"),
    *(
        "stage 1",
        "stage 2",
        "LoRA",
        "ZeRO",
        "recipe",
        "adapter",
        "checkpoint",
        "layout",
        "dry run",
        "calibration questions",
    ),
    *("benchmark", "paired difference", "interval", "FLOPs", "roofline", "quoted", "prefix cache", "token schedule"),
)
"""Words that a reader from outside need not know; more may be added as the README comes to use them."""


def terms() -> list[str]:
    return TERM.findall(GLOSSARY)


def words(term: str) -> re.Pattern[str]:
    """A term as it stands in a text: in either number, across a line break, with any case."""
    return re.compile(r"\b" + r"[\s\-_]+".join(map(re.escape, re.split(r"[ \-]", term.lower()))) + r"(e?s)?\b")


def test_each_term_is_defined_once() -> None:
    found = [term.lower() for term in terms()]
    assert len(found) > 40 and len(set(found)) == len(found)


def test_terms_of_the_readme_are_defined() -> None:
    defined = " ".join(terms()).lower()
    used = [term for term in SPECIAL if words(term).search(README.lower())]
    unknown = [term for term in used if not words(term).search(defined)]
    assert len(used) >= 12 and not unknown, f"README uses {unknown}, docs/glossary.md does not define them"


def test_every_defined_term_is_used() -> None:
    """In a document, in a docstring or in a message: a term that nobody uses is no help."""
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "glossary.md"] + [ROOT / "README.md"]
    sources = [path for name in ("llava_prumerge", "playground", "tests") for path in (ROOT / name).rglob("*.py")]
    text = "\n".join(path.read_text("utf-8").lower() for path in [*pages, *sources] if path.name != "test_glossary.py")
    unused = [term for term in terms() if not words(term).search(text)]
    assert not unused, f"defined and nowhere used: {unused}"


def test_shape_letters_are_told_once() -> None:
    listed = re.findall(r"^\| `([A-Z])` \|", GLOSSARY, flags=re.MULTILINE)
    assert listed == list("BNPKLTCDHRS")
    assert "glossary.md#shape-letters" in (ROOT / "docs" / "architecture.md").read_text("utf-8")
