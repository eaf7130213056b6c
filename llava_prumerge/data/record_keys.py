"""The keys of a record: those that are read, those that name media nobody would see, and all others, which are told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llava_prumerge.ground.naming import shown

KEYS = frozenset({"id", "image", "video", "conversations", "regions", "model"})  # "model" says which one wrote the text
TURN_KEYS = frozenset({"from", "value"})

_MEDIA = re.compile(
    r"(image|img|picture|photo|video|audio|speech|sound|voice|music|frame|clip|gif|depth|point_?cloud|pdf|media)s?"
    r"(_?(path|file|filename|name|url|uri|link|folder|dir|list|base64|b64|bytes|data|content|tensor|pixels?)s?)?",
    re.IGNORECASE,
)
# Where a placeholder of other media is put: alone on the first or the last line.
_PLACEHOLDER = re.compile(
    r"\A\s*(<(?:videos|(?:audio|speech|sound|music|point|depth|frame)s?)>)|(<(?:videos|(?:audio|speech)s?)>)\s*\Z"
)


def foreign_media(raw: Mapping[str, Any]) -> str | None:
    """What a record shows besides its `image` and `video`: a key with something in it, or a placeholder; None for nothing."""
    for key, value in raw.items():
        if key not in ("image", "video") and _MEDIA.fullmatch(str(key)) and value not in (None, "", [], {}):
            return (
                f"{shown(str(key), 60)} is no key of ours, and what it names would not be shown; images go into 'image', "
                "videos into 'video'"
            )
    turns = raw.get("conversations")
    for number, turn in enumerate(turns if isinstance(turns, list) else [], start=1):
        value = turn.get("value") if isinstance(turn, dict) and turn.get("from") == "human" else None
        if isinstance(value, str) and (found := _PLACEHOLDER.search(value)):
            return f"turn {number} shows {found[1] or found[2]}, and only images and videos can be shown"
    return None


def unread_keys(raw: Mapping[str, Any]) -> list[str]:
    """The keys that nobody reads, a turn's as "turn.weight"."""
    found = [str(key) for key in raw if key not in KEYS]
    turns: Iterable[Any] = raw["conversations"]
    found += [f"turn.{key}" for key in dict.fromkeys(key for turn in turns for key in turn if key not in TURN_KEYS)]
    return found
