"""The methods the demo offers: those of method files, shipped or written by a search, and the checkpoint's own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_prumerge.ground import shipped
from llava_prumerge.ground.naming import not_known
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.registry import discover, site_of
from llava_prumerge.methods.resolve import read_method_file, resolve

logger = logging.getLogger(__name__)

OWN, NONE = "the checkpoint's own", "none"

Block = dict[str, Any]


class MethodList:
    """Names and blocks; folders are read anew each time, so that what a search writes meanwhile appears.

    Args:
        own: the checkpoint's block.
        places: method files, and folders of them, beside the shipped ones. A file that is named has to be one.
        more: blocks that were described in words, by those words.
    """

    def __init__(self, own: Block | None, places: Sequence[Path] = (), more: Mapping[str, Block] | None = None) -> None:
        self.own, self.more = own or {}, dict(more or {})
        self._told: set[str] = set()
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
                if str(error) not in self._told:  # once, however often the list is read
                    self._told.add(str(error))
                    logger.warning("%s", error)
                continue
            if path.stem != NONE:
                found[str(path) if path.stem in found else path.stem] = block
        for name in discover():
            found.setdefault(name, {site_of(name): {"name": name}})  # of a plugin, which has no file here
        return found | self.more

    def find(self, name: str) -> Block:
        """A method by its name.

        Raises:
            ReductionError: there is none; the message lists the known ones.
        """
        known = self.read()
        if name not in known:
            raise ReductionError(not_known("method", name, known))
        return known[name]


def with_budget(block: Block, budget: int) -> Block:
    """A block whose first method that takes a budget gets this one.

    Raises:
        ReductionError: none of its methods takes one.
    """
    plain = resolve(block) or {}
    if not plain:
        raise ReductionError(f"{NONE} takes no budget; leave it empty")
    return resolve(plain, {"budget": budget}) or {}


def takes_budget(block: Block) -> bool:
    """Whether one of its methods does, with the other settings it has."""
    for budget in (64, 16, 256):  # some have a least or a largest one
        with contextlib.suppress(ReductionError):
            return bool(with_budget(block, budget))
    return False
