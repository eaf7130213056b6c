"""No file outside a family's own knows it by its name: adding one touches one file."""

from __future__ import annotations

import re
from pathlib import Path

from llava_prumerge.model.families import MAIN, family_types

ROOT = Path(__file__).resolve().parents[2] / "llava_prumerge"
LIBRARY = re.compile(r"from transformers\.models\.\S+")
"""Where transformers keeps a function that several families share."""


def names_in(line: str) -> list[str]:
    bare = LIBRARY.sub("", line)
    return [name for name in family_types() if name != MAIN and re.search(rf"(?<![a-z0-9]){name}(?![0-9]|_text)", bare)]


def test_only_a_familys_file_knows_its_name() -> None:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent in (ROOT / "model" / "families", ROOT / "model" / "checkpoints" / "layouts"):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if names := names_in(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {', '.join(names)}: {line.strip()}")
    assert not found, "\n".join(found)


def test_the_rule_sees_a_name() -> None:
    assert names_in('if kind == "qwen2_vl":') == ["qwen2_vl"] and names_in("prumerge_internvl") == ["internvl"]
    assert not names_in('SERVED = ("gemma2", "gemma3_text")'), "a language model that stands in several families"
