"""What people, tables and folders call the methods of a reduction block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SITES = ("vision", "decoder")
NONE = "none"
ENDINGS = (".yaml", ".yml")
"""Of method files."""


def method_name(reduction: Mapping[str, Any] | None) -> str:
    """The methods of a block, such as "grid" or "grid+fastv"; "none" where there is none."""
    names = [str(part.get("name", "unnamed")) for part in _acting(reduction)]
    return "+".join(names) or NONE


def method_label(reduction: Mapping[str, Any] | None) -> str:
    """The methods of a block with their settings, such as "grid columns=8 rows=5"."""
    labels = []
    for part in _acting(reduction):
        settings = [f"{key}={part[key]}" for key in sorted(part) if key != "name"]
        labels.append(" ".join([str(part.get("name", "unnamed")), *settings]))
    return " + ".join(labels) or NONE


def label_of(described: str) -> str:
    """What to call a method as it was described: a file by its stem, anything else by the words themselves."""
    return Path(described).stem if described.endswith(ENDINGS) else described


def _acting(reduction: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    parts = [(reduction or {}).get(site) for site in SITES]
    return [part for part in parts if isinstance(part, Mapping) and part and part.get("name") != NONE]
