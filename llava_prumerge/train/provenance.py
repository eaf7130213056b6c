"""What ran: resolved settings, revision of the code, versions of its libraries; written beside every run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.ground.reading import read_json
from llava_prumerge.ground.revision import code_revision, library_versions
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.preflight import CONFIG_FILE, MADE_FROM_FILE, read_recorded

logger = logging.getLogger(__name__)

ENVIRONMENT_FILE = "environment.json"
ENVIRONMENT_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")


def describe_environment(arguments: TrainArguments, world_size: int, accumulation: int, backend: str) -> dict[str, Any]:
    """Revision, versions and machine, as plain JSON values."""
    code, versions = code_revision(), library_versions()
    return {
        "command": [sys.executable, *sys.argv],
        "code": {"revision": code and code.commit, "dirty": code and code.changed},
        "platform": platform.platform(),
        "python": versions.pop("python"),
        "packages": versions,
        "variables": {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ},
        "backend": backend,
        "world_size": world_size,
        "accumulation_steps": accumulation,
        "deepspeed": read_json(str(arguments.deepspeed_file)) if arguments.deepspeed else None,
    }


def write_provenance(
    arguments: TrainArguments,
    world_size: int,
    accumulation: int,
    backend: str = "NO",
    origin: Mapping[str, Any] | None = None,
    accepted: Sequence[str] = (),
) -> None:
    """Write config.yaml and made_from.json, and append to environment.json: a resumed run lists every environment it ran in.

    Args:
        origin: what the run is made from (`origin.py`).
        accepted: changes that this start was told to accept; they are recorded, and from now on count as the run's own.

    Raises:
        FileError: a file cannot be written; it is then as before.
    """
    folder = Path(str(arguments.output_dir))
    config_file = folder / CONFIG_FILE
    if accepted or read_recorded(folder)[0] is None:
        write_text(config_file, yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))
    if origin is not None:
        write_json(folder / MADE_FROM_FILE, origin)
    start = describe_environment(arguments, world_size, accumulation, backend)
    history = read_history(folder / ENVIRONMENT_FILE)
    write_json(folder / ENVIRONMENT_FILE, [*history, start | ({"accepted": list(accepted)} if accepted else {})])


def read_history(file: Path) -> list[Any]:
    """The starts of a run so far; a record that cannot be read is set aside with a word, as it is no reason to stop."""
    if not file.exists():
        return []
    try:
        history = read_json(file)
        if isinstance(history, list) and all(isinstance(start, dict) for start in history):
            return history
        reason = "it holds no list of starts"
    except FileError as error:
        reason = error.reason
    aside = file.with_name(f"{file.name}.unreadable")
    with contextlib.suppress(OSError):
        file.replace(aside)
    logger.warning("%s cannot be read (%s); it is kept as %s, and a new one begins", file, reason, aside.name)
    return []
