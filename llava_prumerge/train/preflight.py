"""Checks made before torch is imported: do the recipe's inputs exist, and is the output folder free for this run?"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llava_prumerge.data.image_paths import TrustError, trusted_folders
from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.ground import shipped
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.ground.locks import LOCK_FILES
from llava_prumerge.ground.ranks import is_main_rank
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.ground.yaml_files import read_yaml
from llava_prumerge.text.hub_files import folder_of, is_here, is_offline
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.checkpoints import find_fault, list_checkpoints, newest_sound, read_manifest

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
FINISHED_FILE = "finished.json"
MERGED_FOLDER = "merged"
MADE_FROM_FILE = "made_from.json"

MODEL_KEYS = ("model", "language_model", "vision_tower")  # a folder, or a name on the Hub

# Settings that may differ when a run is continued: they change neither the weights nor their order of updates.
FREE_KEYS = frozenset(
    {
        "resume",
        "report_to",
        "run_name",
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "max_skipped_steps",
        "workers",
        "bad_sample_limit",
        "trusted",
        "output_dir",
        "merge",
        "device",
        "tower_cache",
        "tower_cache_gb",
        "accept_changes",
        "per_device_batch",  # global_batch decides what a step is made of
    }
)
# Files and folders: what is in them counts (`origin.py`), not where they lie.
PATH_KEYS = frozenset({"data", "images", "videos", "model", "language_model", "vision_tower", "projector", "deepspeed"})
# What a run leaves in its folder beside checkpoints: with one of these in it, a folder is a run.
RUN_FILES = (MADE_FROM_FILE, "environment.json", "metrics.jsonl")


def required_inputs(arguments: TrainArguments) -> dict[str, str | None]:
    """The paths this run cannot do without, by recipe key."""
    keys = ["data", "images"] + ["videos"] * (arguments.videos is not None)
    if arguments.model is not None:
        keys.append("model")
    else:
        keys += ["language_model", "vision_tower"]
        if arguments.stage != "projector" or arguments.projector is not None:
            keys.append("projector")
    if arguments.deepspeed_file is not None and not Path(arguments.deepspeed_file).exists():
        keys.append("deepspeed")
    return {key: getattr(arguments, key) for key in keys}


def missing_inputs(arguments: TrainArguments) -> dict[str, str | None]:
    """Those of them that are not here; of names on the Hub those whose configuration is not in the cache."""
    found = {
        key: path is not None and (is_here(path) if key in MODEL_KEYS else Path(path).exists())
        for key, path in required_inputs(arguments).items()
    }
    return {key: path for key, path in required_inputs(arguments).items() if not found[key]}


def check_inputs(arguments: TrainArguments) -> None:
    """Raise one error that lists every input this run needs and which of them are missing; ask the Hub for its names."""
    inputs, missing = required_inputs(arguments), missing_inputs(arguments)
    to_fetch = [key for key in MODEL_KEYS if key in missing and is_hub_name(str(missing[key])) and not is_offline()]
    missing = {key: path for key, path in missing.items() if key not in to_fetch}
    if missing:
        listed = ", ".join(f"{key}={path}{' (missing)' if key in missing else ''}" for key, path in inputs.items())
        raise RecipeError(f"this run needs {listed}; {advice([str(inputs[key]) for key in missing])}")
    for key in to_fetch:
        folder_of(str(inputs[key]), f"{key}=")
    for key in ("data", "deepspeed"):
        if inputs.get(key) is not None and not Path(str(inputs[key])).is_file():
            raise RecipeError(f"{key}={inputs[key]}: must be a file")
    try:
        trusted_folders(arguments.trusted)
    except TrustError as error:
        raise RecipeError(str(error)) from error
    folders = [
        key
        for key in ("images", "videos", *MODEL_KEYS)
        if inputs.get(key) is not None and not is_hub_name(str(inputs[key]))
    ]
    for key in folders:
        if not Path(str(inputs[key])).is_dir():
            raise RecipeError(f"{key}={inputs[key]}: must be a folder")
        names = ["config.json"] + ["open_clip_config.json"] * (key == "vision_tower")
        if key in MODEL_KEYS and not any((Path(str(inputs[key])) / name).is_file() for name in names):
            raise RecipeError(f"{key}={inputs[key]}: the folder has no {' or '.join(names)}")


def advice(missing: list[str]) -> str:
    """Where the missing inputs come from."""
    checkout = shipped.configs().parent
    if (
        Path.cwd() != checkout
        and (checkout / "scripts").is_dir()
        and any((checkout / path).exists() for path in missing)
    ):
        return f"paths are seen from {Path.cwd()}: start it in {checkout}, or give them as key=value"
    families = [Path(path).name for path in missing if path.startswith("playground/pocket/work/")]
    if families:
        return f"python playground/pocket/families.py {families[0]} makes it, python playground/pocket/build.py data the records"
    if all(path.startswith("playground/pocket/") for path in missing):
        return "python playground/pocket/build.py makes them"
    if all(path.startswith("playground/data/") or path == "playground/data" for path in missing):
        return "python -m llava_prumerge.data.prepare download fetches them (docs/data.md)"
    if all(path.startswith("runs/pocket-pretrain") for path in missing):
        return "RECIPE=pocket bash scripts/pretrain.sh makes it"
    return "give them as key=value (docs/training.md), or try it at pocket size with RECIPE=pocket"


def check_output_dir(arguments: TrainArguments) -> None:
    """Refuse an output folder that holds something other than this run.

    Raises:
        RecipeError: it holds another run, other people's files, or checkpoints that this run is told not to continue.
    """
    folder = Path(str(arguments.output_dir))
    if arguments.output_dir is None:
        raise RecipeError("output_dir is missing: say where results go, as output_dir=runs/NAME")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RecipeError(f"output_dir={folder}: is a file")
    recorded = recorded_settings(folder)
    if recorded is not None:
        check_recorded(folder, recorded, arguments)
    elif not is_run(folder) and any(path.name not in LOCK_FILES for path in folder.iterdir()):
        raise RecipeError(f"output_dir={folder}: holds files but no {CONFIG_FILE}: not a run; choose another")
    if arguments.resume == "none" and list_checkpoints(folder):
        raise RecipeError(f"output_dir={folder} holds checkpoints; use resume=auto or another output_dir")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, also where its copy of the recipe is gone: checkpoints say what they were made from."""
    return any((folder / name).exists() for name in RUN_FILES) or bool(list_checkpoints(folder))


def recorded_settings(folder: Path) -> dict[str, Any] | None:
    """A run's copy of its recipe; None where there is none, or with a word where it cannot be read.

    Raises:
        RecipeError: it cannot be read, and the run has ended: nothing else says which run that was.
    """
    recorded, fault = read_recorded(folder)
    if fault and read_finished(folder)[0] is not None:
        raise RecipeError(
            f"{folder / CONFIG_FILE} cannot be read ({fault}), so what run has ended here cannot be told; choose another output_dir"
        )
    if fault and is_main_rank():
        logger.warning("%s cannot be read (%s); it is passed over and written anew", folder / CONFIG_FILE, fault)
    return recorded


def read_recorded(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The settings in a run's copy of its recipe, and why there are none that can be read."""
    if not (folder / CONFIG_FILE).exists():
        return None, ""
    try:
        recorded = read_yaml(folder / CONFIG_FILE)
    except FileError as error:
        return None, error.reason
    return (recorded, "") if isinstance(recorded, dict) and recorded else (None, "it holds no settings")


def check_recorded(folder: Path, recorded: Mapping[str, Any], arguments: TrainArguments) -> None:
    """Refuse to go on with a run under other settings, but for those that `accept_changes` names.

    Raises:
        RecipeError: with each of them.
    """
    changes = different_settings(recorded, arguments)
    method = [change for change in changes if change.startswith("reduction: ")]
    refused = {"recipe": [change for change in changes if change not in method], "method": method}
    refused = {key: found for key, found in refused.items() if found and key not in arguments.accept_changes}
    if refused:
        accepted = ",".join(dict.fromkeys([*arguments.accept_changes, *refused]))
        raise RecipeError(
            f"output_dir={folder} holds another run ({'; '.join(sum(refused.values(), []))}); choose another output_dir, or go "
            f"on all the same with accept_changes={accepted}"
        )


def different_settings(recorded: Mapping[str, Any], arguments: TrainArguments) -> list[str]:
    """Settings of a recorded run that differ from these, as `key: old -> new`. One it does not know had its default."""
    left_out = FREE_KEYS | PATH_KEYS
    before = dataclasses.asdict(TrainArguments()) | dict(recorded)
    now = dataclasses.asdict(arguments)
    return differences(
        {key: value for key, value in before.items() if key not in left_out},
        {key: value for key, value in now.items() if key not in left_out},
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Values that differ, as `key: old -> new`."""
    keys = sorted({*before, *now})
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def find_resume_point(
    arguments: TrainArguments,
    examine: Callable[[Path], str | None] = find_fault,
    listed: Callable[[Path], list[Path]] = list_checkpoints,
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint to continue from (None: from the beginning), and later ones that cannot be, each with the reason.

    Args:
        examine: a checkpoint's fault, or None; the default takes a first look, without reading the files.
        listed: a run's checkpoints.

    Raises:
        RecipeError: `resume` names a folder that cannot be continued from.
    """
    if arguments.resume == "none":
        return None, []
    if arguments.resume == "auto":
        return newest_sound(listed(Path(str(arguments.output_dir))), examine)
    folder = Path(arguments.resume)
    fault = examine(folder) if folder.is_dir() else "there is no such folder"
    if fault is not None:
        raise RecipeError(f"resume={folder}: {fault}; use auto, none or a checkpoint folder")
    return folder, []


def check_ranks(checkpoint: Path, arguments: TrainArguments, world_size: int) -> None:
    """Refuse to continue a DeepSpeed run on another number of ranks: each shard of its checkpoints belongs to one of them.

    Raises:
        RecipeError: with both numbers.
    """
    written = read_manifest(checkpoint)["world_size"]
    if arguments.deepspeed is not None and written != world_size:
        raise RecipeError(
            f"{checkpoint} was written by {written} ranks under DeepSpeed, this start has {world_size}: start {written}, or "
            "convert it (deepspeed.checkpoint.ds_to_universal)"
        )


def is_finished(arguments: TrainArguments) -> bool:
    """Whether the run in this output folder has ended, and all that it left is still there."""
    folder = Path(str(arguments.output_dir))
    if arguments.resume != "auto" or not (folder / FINISHED_FILE).exists():
        return False
    record, fault = read_finished(folder)
    if record is None and is_main_rank():
        logger.warning("%s is passed over: %s", folder / FINISHED_FILE, fault)
    return record is not None


def read_finished(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What a run says of its end, and "": or None, and why it cannot be taken as ended."""
    try:
        record = read_json_object(folder / FINISHED_FILE)
    except FileError as error:
        return None, error.reason
    names = record.get("files", [])
    if not isinstance(record.get("steps"), int) or not isinstance(names, list):
        return None, "it does not say how many steps were taken"
    missing = [name for name in names if not (folder / str(name)).is_file()]
    return (None, f"{missing[0]} is missing") if missing else (record, "")


def wants_merged(arguments: TrainArguments) -> bool:
    """Whether the run also writes a complete model; stage full does so anyway."""
    return arguments.merge and arguments.stage != "full"
