"""The methods the demo offers: those of method files, shipped or written by a search, and the checkpoint's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.ground import shipped
from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.registry import discover, fields_of
from llava_prumerge.model.configuration import check_reduction

logger = logging.getLogger(__name__)

OWN, NONE = "the checkpoint's own", "none"
SITES = ("vision", "decoder")

Block = dict[str, Any]


def read_method_file(path: Path) -> Block:
    """The reduction block of a method file; {} for one that keeps everything.

    Raises:
        ReductionError: no method file; the message names it.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
        block = content.get("reduction", content) if isinstance(content, dict) else content
        if not isinstance(block, dict):
            raise InputError(f"expected the keys {' and '.join(SITES)}, found {block!r}")
        checked = check_reduction(block) or {}
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise ReductionError(f"{path} is no method file: {' '.join(str(error).split())}") from error
    return {site: part for site, part in checked.items() if part}


class MethodList:
    """Names and blocks; folders are read anew each time, so that what a search writes meanwhile appears.

    Args:
        own: the checkpoint's block.
        places: method files, and folders of them, beside the shipped ones. A file that is named has to be one.
    """

    def __init__(self, own: Block | None, places: Sequence[Path] = ()) -> None:
        self.own = own or {}
        self.files = [place for place in places if place.is_file()]
        self.folders = [shipped.folder("method"), *(place for place in places if not place.is_file())]
        for place in self.folders[1:]:
            if not place.is_dir():
                raise ReductionError(f"{place}: no such method file or folder")
        for file in self.files:
            read_method_file(file)

    def read(self) -> dict[str, Block]:
        """All methods by the name they are chosen by: a file's stem, or its path where two share one."""
        found: dict[str, Block] = {OWN: self.own} if self.own else {}
        found[NONE] = {}
        for path in [*self.files, *(path for folder in self.folders for path in sorted(folder.glob("*.yaml")))]:
            try:
                block = read_method_file(path)
            except ReductionError as error:
                logger.warning("%s", error)
                continue
            if path.stem != NONE:
                found[str(path) if path.stem in found else path.stem] = block
        return found

    def find(self, name: str) -> Block:
        """A method by its name.

        Raises:
            ReductionError: there is none; the message lists the known ones.
        """
        known = self.read()
        if name not in known:
            raise ReductionError(f"method {name[:80]!r} is not known; there are: {', '.join(known)}")
        return known[name]


def with_budget(block: Block, budget: int) -> Block:
    """A block whose first method that takes a budget gets this one.

    Raises:
        ReductionError: none of its methods takes one.
    """
    known = discover()
    for site in SITES:
        part = block.get(site)
        if part and part["name"] in known and "budget" in fields_of(known[part["name"]]):
            return {**block, site: {**part, "budget": budget}}
    names = " and ".join(part["name"] for part in block.values() if part) or NONE
    raise ReductionError(f"{names} takes no budget; leave it empty")
