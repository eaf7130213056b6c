"""What of a file may go to others: settings without notes about the machine that wrote them, and names in place of paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llava_prumerge.ground.errors import AnyPath
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.ground.reading import read_json_object

PRIVATE = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""Where transformers notes the folder that something was loaded from."""


def without_private(value: Any) -> Any:
    """A value of JSON without the private keys, at any depth."""
    if isinstance(value, dict):
        return {key: without_private(inner) for key, inner in value.items() if key not in PRIVATE}
    return [without_private(inner) for inner in value] if isinstance(value, list) else value


def make_public(path: AnyPath) -> None:
    """Take the private keys out of a JSON file, if it is there.

    Raises:
        FileError: it is no JSON object, or cannot be written.
    """
    if not Path(path).is_file():
        return
    values = read_json_object(path)
    public = without_private(values)
    if public != values:
        write_json(path, public, sync=False)


def public_name(text: str | os.PathLike[str] | None) -> str | None:
    """A model's name on the Hub as it is, with its @REVISION; a folder's by the last part of its path."""
    if text is None or is_hub_name(os.fspath(text).partition("@")[0]):
        return None if text is None else os.fspath(text)
    return Path(os.path.abspath(text)).name
