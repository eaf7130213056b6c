"""What made a result: the code's revision and libraries' versions, and the names of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_prumerge.ground.revision import command_line, library_versions, revision_text


def describe_environment() -> dict[str, Any]:
    """The command, the code's revision and the libraries' versions."""
    versions = library_versions()
    return {
        "command": command_line(),
        "revision": revision_text(),
        "versions": {name: version for name, version in versions.items() if version is not None},
    }


def method_name(reduction: Mapping[str, Any] | None) -> str:
    """The methods of a reduction block, such as "prumerge" or "prumerge+fastv"; "none" where there is none."""
    blocks = [(reduction or {}).get(site) for site in ("vision", "decoder")]
    names = [str(block.get("name", "unnamed")) for block in blocks if block]
    return "+".join(name for name in names if name != "none") or "none"


def method_label(reduction: Mapping[str, Any] | None) -> str:
    """The methods of a reduction block with their settings, such as "grid columns=8 rows=5"."""
    blocks = [(reduction or {}).get(site) for site in ("vision", "decoder")]
    labels = []
    for block in blocks:
        if block and block.get("name") != "none":
            settings = [f"{key}={block[key]}" for key in sorted(block) if key != "name"]
            labels.append(" ".join([str(block.get("name", "unnamed")), *settings]))
    return " + ".join(labels) or "none"
