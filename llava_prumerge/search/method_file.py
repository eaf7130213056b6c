"""The pruner that a search is for, and the method file it writes: what was found, behind the checkpoint's vision reducer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.ground.files import write_text
from llava_prumerge.ground.naming import not_known
from llava_prumerge.methods.search_target import SearchKind, SearchTarget
from llava_prumerge.search.command import SearchError


def find_target(kind: SearchKind, method: str | None) -> tuple[str, SearchTarget]:
    """The method whose settings are searched for, and what it says of the search.

    Args:
        kind: of the search.
        method: by name; None where only one method can be searched so.

    Raises:
        SearchError: that method cannot, or several can and none is named.
    """
    from llava_prumerge.methods.registry import search_targets  # with torch

    known = search_targets(kind)
    if method is None and len(known) != 1:
        raise SearchError(f"--method says whose {kind} is searched for: {', '.join(known) or 'no method has one'}")
    name = next(iter(known)) if method is None else method
    if name not in known:
        raise SearchError(not_known(f"method with a {kind} to search for", name, known))
    return name, known[name]


def block_of(name: str, target: SearchTarget, **found: Any) -> dict[str, Any]:
    """A pruner's block with what a search found, by name."""
    return {"name": name, **target.settings(**found)}


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
