"""The method file a search writes: the pruner it found, behind the vision reducer that the checkpoint names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.ground.files import write_text


def method_text(decoder: dict[str, Any], reduction: dict[str, Any] | None, note: str) -> str:
    """The text of a method file.

    Args:
        decoder: the pruner's block.
        reduction: of the checkpoint; its vision reducer stays, a pruner of its own does not.
        note: the comment in the first line.
    """
    block = {"vision": (reduction or {}).get("vision"), "decoder": decoder}
    block = {site: part for site, part in block.items() if part}
    return f"# {note}\n{yaml.safe_dump(block, default_flow_style=None, sort_keys=False)}"


def write_method(path: Path, decoder: dict[str, Any], reduction: dict[str, Any] | None, note: str) -> None:
    """Write a method file; see `method_text`."""
    write_text(path, method_text(decoder, reduction, note))
