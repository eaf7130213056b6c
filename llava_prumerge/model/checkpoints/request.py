"""What a conversion is asked for: one field for each option of the command, with the words of its help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.methods.resolve import Block
from llava_prumerge.text.hub_files import fetch_model

GIGABYTE = 10**9


def option(told: str, default: Any = None, **settings: Any) -> Any:
    """A field that is an option of the command, with argparse's settings."""
    return dataclasses.field(default=default, metadata={"help": told, **settings})


def switch(told: str) -> Any:
    """A field that is on or off."""
    return option(told, default=False, action="store_true")


@dataclass(frozen=True)
class Request:
    """One conversion. Folders may be names on the Hub, NAMESPACE/NAME or NAMESPACE/NAME@REVISION; they are fetched when they are read.

    Attributes:
        names: of the folders that were fetched.
    """

    source: Path
    target: Path | None = None
    to: str = option("layout to write (ours)", default="ours", metavar="LAYOUT")
    vision_tower: Path | None = option("the CLIP of layouts without vision weights", type=Path, metavar="FOLDER|NAME")
    video_tower: Path | None = option("the tower for videos of layouts without it", type=Path, metavar="FOLDER|NAME")
    language_model: Path | None = option("the base of adapters or a projector", type=Path, metavar="FOLDER|NAME")
    missing_from: Path | None = option(
        "adapters like SOURCE, for files that SOURCE lacks", type=Path, metavar="FOLDER|NAME"
    )
    reduction: Block | None = option(
        "a method for config.json: name, file, block or NAME:key=value,...; `none` drops what SOURCE says",
        metavar="METHOD",
    )
    keep_rows: bool = switch("keep every row of the vocabulary in --to original")
    with_vision: bool = switch("keep a trained tower's weights in --to original")
    merge: bool = switch("put adapters or projector into their base: a whole model")
    dtype: str | None = option("of all weights; by default each keeps its own", metavar="TYPE")
    open_clip_model: str | None = option("architecture of an open_clip checkpoint", metavar="NAME|JSON")
    shard_size: float = option("of the result's files, at most (5)", default=5.0, type=float, metavar="GB")
    dry_run: bool = switch("list the result's tensors; write nothing")
    names: dict[Path, str] = dataclasses.field(default_factory=dict)

    @property
    def shard_bytes(self) -> int:
        """A shard's size at most."""
        return int(self.shard_size * GIGABYTE)

    def place(self, key: str) -> Any:
        """The folder of one of the fields, in the Hub's cache where a name was given; None where nothing was.

        Raises:
            HubError: it is neither here nor to be had.
        """
        given = getattr(self, key)
        if given is None:
            return None
        option = "" if key == "source" else f"--{key.replace('_', '-')} "
        found = fetch_model(given, option, weights=not self.dry_run)
        if found != given:
            self.names[found] = str(given)
        return found

    def of(self, source: Path) -> Request:
        """The same request of another source, which is fetched."""
        inner = dataclasses.replace(self, source=source)
        return dataclasses.replace(inner, source=inner.place("source"))

    def called(self, path: Path) -> str:
        """A folder's name on the Hub, where it has one, or its path."""
        return self.names.get(path, str(path))
