"""Every package that the code imports is asked for in pyproject.toml: what another package happens to bring along may go."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = {"llava_prumerge", "playground", "eval"}
NAMES = {
    "lmms_eval": "lmms-eval",
    "vlmeval": "ms-vlmeval",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "flash_attn": "flash-attn",
    "open_clip": "open-clip-torch",
    "google": "protobuf",
}
"""Distributions of imports that have another name, for those that need not be installed here."""
MAY_BE_ABSENT = {"torchvision": "asked for where a family's processor needs it, with a line that says so"}


def imports(folder: str) -> set[str]:
    """Top-level names that the files of a folder import, at any depth of theirs."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - OWN


def asked_for() -> set[str]:
    """Distributions of the dependencies and of all extras, in lower case with hyphens."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {re.split(r"[\s\[><=!~;]", line)[0].lower().replace("_", "-") for line in lines}


@pytest.mark.parametrize("folder", ["llava_prumerge", "eval", "playground"])
def test_what_is_imported_is_asked_for(folder: str) -> None:
    known, asked = packages_distributions(), asked_for()
    assert len(asked) > 20
    for name in sorted(imports(folder) - set(MAY_BE_ABSENT)):
        distributions = {NAMES.get(name, name), *known.get(name, [])}
        assert any(one.lower().replace("_", "-") in asked for one in distributions), f"{folder} imports {name}"
