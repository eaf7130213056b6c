"""Checks made before torch is imported: do the recipe's inputs exist, and is the output folder free for this run?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.data.image_paths import TrustError, trusted_folders
from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.ground import shipped
from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.text.hub_files import folder_of, is_here, is_offline
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.checkpoints import find_fault, list_checkpoints, newest_sound, read_manifest

CONFIG_FILE = "config.yaml"
FINISHED_FILE = "finished.json"
MERGED_FOLDER = "merged"

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
    }
)


def required_inputs(arguments: TrainArguments) -> dict[str, str | None]:
    """The paths this run cannot do without, by recipe key."""
    keys = ["data", "images"]
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
        key for key in ("images", *MODEL_KEYS) if inputs.get(key) is not None and not is_hub_name(str(inputs[key]))
    ]
    for key in folders:
        if not Path(str(inputs[key])).is_dir():
            raise RecipeError(f"{key}={inputs[key]}: must be a folder")
        if key in MODEL_KEYS and not (Path(str(inputs[key])) / "config.json").is_file():
            raise RecipeError(f"{key}={inputs[key]}: the folder has no config.json")


def advice(missing: list[str]) -> str:
    """Where the missing inputs come from."""
    checkout = shipped.configs().parent
    if (
        Path.cwd() != checkout
        and (checkout / "scripts").is_dir()
        and any((checkout / path).exists() for path in missing)
    ):
        return f"paths are seen from {Path.cwd()}: start it in {checkout}, or give them as key=value"
    if all(path.startswith("playground/pocket/") for path in missing):
        return "python playground/pocket/build.py makes them"
    if all(path.startswith("playground/data/") or path == "playground/data" for path in missing):
        return "python -m llava_prumerge.data.prepare download fetches them (docs/data.md)"
    if all(path.startswith("runs/pocket-pretrain") for path in missing):
        return "RECIPE=pocket bash scripts/pretrain.sh makes it"
    return "give them as key=value (docs/training.md), or try it at pocket size with RECIPE=pocket"


def check_output_dir(arguments: TrainArguments) -> None:
    """Refuse an output folder that belongs to something else. Nothing in it is changed."""
    if arguments.output_dir is None:
        raise RecipeError("output_dir is not set")
    folder = Path(arguments.output_dir)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RecipeError(f"output_dir={folder}: is a file")
    config_file = folder / CONFIG_FILE
    if not config_file.is_file():
        if any(folder.iterdir()):
            raise RecipeError(f"output_dir={folder}: holds files but no {CONFIG_FILE}: not a run; choose another")
        return
    changes = different_settings(yaml.safe_load(config_file.read_text(encoding="utf-8")) or {}, arguments)
    if changes:
        raise RecipeError(f"output_dir={folder} holds another run ({'; '.join(changes)}); choose another output_dir")
    if arguments.resume == "none" and list_checkpoints(folder):
        raise RecipeError(f"output_dir={folder} holds checkpoints; use resume=auto or another output_dir")


def different_settings(recorded: dict[str, Any], arguments: TrainArguments) -> list[str]:
    """Settings of a recorded run that differ from these, as `key: old -> new`. One it does not know had its default."""
    current = dataclasses.asdict(arguments)
    recorded = dataclasses.asdict(TrainArguments()) | recorded
    keys = sorted((set(recorded) | set(current)) - FREE_KEYS)
    return [f"{k}: {recorded.get(k)} -> {current.get(k)}" for k in keys if recorded.get(k) != current.get(k)]


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
    """Whether the run in this output folder has already ended."""
    return arguments.resume == "auto" and (Path(str(arguments.output_dir)) / FINISHED_FILE).is_file()


def wants_merged(arguments: TrainArguments) -> bool:
    """Whether the run also writes a complete model; stage full does so anyway."""
    return arguments.merge and arguments.stage != "full"
