"""base.json: which models trained parts belong to, where these lie, and what their weights were in training.

    {"model": null, "language_model": {"path": "/models/vicuna", "from_here": "../../vicuna", "weights": "2:5c1..."}, ...}

Parts on other weights of the same shapes would answer nonsense, so a base whose weights have changed is refused.
`$LLAVA_PRUMERGE_ACCEPT_BASE=1` goes on with it all the same. Of names on the Hub the snapshot in the local cache counts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.ground.naming import shown
from llava_prumerge.model.fingerprint import VERSION, weights_fingerprint
from llava_prumerge.model.weight_files import LoadingError, read_object

BASE_FILE = "base.json"  # beside trained parts
BASE_KEYS = ("model", "language_model", "vision_tower")
VARIABLE = "LLAVA_PRUMERGE_ACCEPT_BASE"
LARGEST_SEED = 2**63 - 1

logger = logging.getLogger(__name__)


def write_base_file(values: Mapping[str, Any], folder: Path, place: Path | None = None) -> None:
    """Write base.json: each base with its place, also as seen from `place` (or `folder`), and what its weights are.

    Args:
        values: folders, or names on the Hub, by `BASE_KEYS`, None for none; and the seed.
        folder: of the trained parts.
        place: where the folder will lie when it has its name, if not where it lies now.
    """
    entries = dict(values)
    for key in BASE_KEYS:
        base = values.get(key)
        if base is None:
            continue
        named = is_hub_name(base)
        entry = (
            {"hub": str(base)} if named else {"path": str(base), "from_here": os.path.relpath(base, place or folder)}
        )
        weights = _weights_of(str(base))
        entries[key] = entry if weights is None else entry | {"weights": weights}
    write_json(folder / BASE_FILE, entries)


def read_base_file(folder: Path) -> dict[str, Any]:
    """What base.json says: folders that exist, or names on the Hub, by `BASE_KEYS`, and the seed.

    Raises:
        LoadingError: the file or a folder it names is missing, it is not what this module writes, or a base has other weights
            than in training.
    """
    file = folder / BASE_FILE
    if not file.is_file():
        raise LoadingError(f"{folder} has no {BASE_FILE}, which says what model its weights belong to")
    entries = read_object(file)
    seed = entries.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise LoadingError(f"{file}: seed must be a whole number of 0 or more, found {shown(seed)}")
    found = {key: _find(key, entries[key], folder) for key in BASE_KEYS if entries.get(key) is not None}
    if not ("model" in found or {"language_model", "vision_tower"} <= found.keys()):
        raise LoadingError(f"{file} must name model, or language_model and vision_tower")
    check_base_weights(folder, entries, found)
    return {**found, "seed": seed}


def _find(key: str, entry: Any, folder: Path) -> str:
    """The folder, or the name on the Hub, that an entry stands for."""
    file = folder / BASE_FILE
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise LoadingError(f"{file}: {key} must be an object with path or hub, found {shown(entry)}")
    if "hub" in entry:  # a released folder
        if not is_hub_name(entry["hub"]):
            raise LoadingError(f"{file}: {key} must name a repository on the Hub, found {shown(entry['hub'])}")
        return str(entry["hub"])
    if "path" not in entry:
        raise LoadingError(f"{file}: {key} must be an object with path or hub, found {shown(entry)}")
    places = [folder / entry["from_here"]] if "from_here" in entry else []
    places.append(Path(entry["path"]))
    for place in places:
        if os.path.isdir(place):
            return str(place)
    raise LoadingError(f"{file} names {key} {entry['path']}, which is neither there nor at {places[0]}")


def check_base_weights(folder: Path, entries: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Refuse bases with other weights than in training, as far as they are here and base.json tells.

    Args:
        folder: of the trained parts.
        entries: of its base.json.
        found: where the bases are.

    Raises:
        LoadingError: with each of them.
    """
    changed = []
    for key, place in found.items():
        then = entries[key].get("weights", "")
        now = _weights_of(place) if then.startswith(VERSION) else None
        if now is not None and now != then:
            changed.append(f"{key} {place}")
    if not changed:
        return
    told = f"{folder}: its weights belong to another base than this: {', '.join(changed)} has changed since training"
    if os.environ.get(VARIABLE) != "1":
        raise LoadingError(f"{told} ({BASE_FILE}); put the original there, or go on all the same with {VARIABLE}=1")
    logger.warning("accepted: %s", told)


def _weights_of(base: str) -> str | None:
    """A fingerprint of the weights of a folder, or of what the cache has of a name on the Hub; None where there are none."""
    place = Path(base)
    if is_hub_name(base):
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(base, "config.json")
        if not isinstance(config, str):
            return None
        place = Path(config).parent
    return weights_fingerprint(place)
