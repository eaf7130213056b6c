"""What a run is made from: recipe, method, records, images and base weights, stored with it and compared when it is continued."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.data.image_digest import digest_images
from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.data.records import open_records
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.reading import file_digest, read_json, read_json_object
from llava_prumerge.model.fingerprint import fingerprint
from llava_prumerge.train.arguments import ACCEPTED, TrainArguments
from llava_prumerge.train.preflight import FREE_KEYS, MADE_FROM_FILE, PATH_KEYS, differences

logger = logging.getLogger(__name__)

BASE_KEYS = ("model", "language_model", "vision_tower", "projector")
_VERSION = 1
_KNOWN = frozenset(field.name for field in dataclasses.fields(TrainArguments))


def describe_origin(arguments: TrainArguments) -> dict[str, Any]:
    """What a run with these settings is made from, as plain JSON values.

    Of the images the first 2048 of an order that their names decide are read, and of large weight files what their fingerprint
    reads: a change of a hundredth of either is missed once in 800 million times.

    Raises:
        RecipeError: the records cannot be read.
        FileError: another file cannot be read.
    """
    try:
        rows = open_records(str(arguments.data))
    except ValueError as error:  # no file of records
        raise RecipeError(f"data={arguments.data}: {error}") from error
    images = digest_images(Path(str(arguments.images)), (name for names in rows["image"] for name in names))
    if videos := [name for names in rows["video"] for name in names]:
        images["videos"] = digest_images(Path(str(arguments.videos or arguments.images)), videos)
    found = {
        "version": _VERSION,
        "recipe": settings_that_decide(arguments),
        "method": arguments.reduction,
        "records": {"sha256": file_digest(str(arguments.data)), "count": len(rows)},
        "images": images,
        "base": {key: fingerprint(path) for key in BASE_KEYS if (path := getattr(arguments, key)) is not None},
    }
    return json.loads(json.dumps(found, default=str))  # as it will be read


def settings_that_decide(arguments: TrainArguments) -> dict[str, Any]:
    """The settings that a run's result depends on; for files their content stands, wherever they lie."""
    left_out = {*FREE_KEYS, *PATH_KEYS, "reduction"}
    values = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in left_out}
    return values | {"deepspeed": read_json(str(arguments.deepspeed_file)) if arguments.deepspeed else None}


def read_origin(folder: Path) -> dict[str, Any] | None:
    """What a run or a checkpoint says it was made from; None where it does not say, as earlier versions' do not."""
    try:
        found = read_json_object(folder / MADE_FROM_FILE)
    except FileError:
        return None
    parts = (found.get(key) for key in ("recipe", "records", "images", "base"))
    return found if found.get("version") == _VERSION and all(isinstance(part, dict) for part in parts) else None


def changes_since(before: Mapping[str, Any], now: Mapping[str, Any], place: str) -> dict[str, str]:
    """What has changed, each in a few words, by the name that `accept_changes` takes.

    Args:
        before: what a checkpoint says.
        now: what this start has.
        place: since when, such as "checkpoint-3".
    """
    found = {}
    if settings := differences(_as_today(before["recipe"]), now["recipe"]):
        found["recipe"] = f"recipe changed since {place}: {'; '.join(settings)}"
    if methods := differences(_flat(before.get("method")), _flat(now["method"])):
        found["method"] = f"method changed since {place}: {'; '.join(methods)}"
    for key in ("records", "images"):
        old, new = before[key], now[key]
        if old.get("sha256") != new["sha256"]:
            counts = old.get("count"), new["count"]
            told = f"{counts[0]} -> {counts[1]}" if counts[0] != counts[1] else f"still {counts[1]}, with other content"
            found[key] = f"{key} changed since {place}: {told}"
    bases = sorted(key for key in {*before["base"], *now["base"]} if before["base"].get(key) != now["base"].get(key))
    if bases:
        found["base"] = f"base changed since {place}: other weights or files in {', '.join(bases)}"
    return found


def _as_today(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe as today's version would have written it: a setting that is newer than the run had its default.

    One that no longer decides anything is left out; one that is gone stays, and is told.
    """
    defaults = json.loads(json.dumps(settings_that_decide(TrainArguments()), default=str))
    return defaults | {key: value for key, value in stored.items() if key in defaults or key not in _KNOWN}


def _flat(block: Any, name: str = "") -> dict[str, Any]:
    """A method's block as one mapping of dotted names."""
    if not isinstance(block, dict):
        return {name: block} if name else {}
    return {
        inner: value
        for key, part in block.items()
        for inner, value in _flat(part, f"{name}{'.' * bool(name)}{key}").items()
    }


def check_origin(before: Mapping[str, Any], now: Mapping[str, Any], place: str, accepted: list[str]) -> list[str]:
    """Refuse to continue from something that was made from other things. -> the changes that were accepted

    Raises:
        RecipeError: with each change that `accept_changes` does not name.
    """
    changes = changes_since(before, now, place)
    refused = [key for key in ACCEPTED if key in changes and key not in accepted]
    if refused:
        raise RecipeError(
            f"{'; '.join(changes[key] for key in refused)}; take back the change or choose another output_dir, or go on "
            f"all the same with accept_changes={','.join(dict.fromkeys([*accepted, *refused]))}"
        )
    return [changes[key] for key in ACCEPTED if key in changes]


@dataclass(frozen=True)
class Binding:
    """A start of a run, and what it is made from.

    Attributes:
        arguments: of this start.
        now: what `describe_origin` says of it.
    """

    arguments: TrainArguments
    now: dict[str, Any]

    def check(self, checkpoint: Path | None) -> list[str]:
        """Compare with a checkpoint to continue from, or with the run as it began. -> the changes that were accepted

        Raises:
            RecipeError: with each change that `accept_changes` does not name.
        """
        run = Path(str(self.arguments.output_dir))
        before = read_origin(run if checkpoint is None else checkpoint)
        if before is None:
            if checkpoint is not None:
                logger.warning("%s does not say what it was made from; it is taken as it is", checkpoint)
            return []
        place = "this run began" if checkpoint is None else checkpoint.name
        return check_origin(before, self.now, place, self.arguments.accept_changes)
