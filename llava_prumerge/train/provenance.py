"""What ran: resolved settings, revision of the code, versions of its libraries; written beside every run."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.ground.revision import code_revision, library_versions
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.preflight import CONFIG_FILE

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
        "deepspeed": json.loads(Path(str(arguments.deepspeed_file)).read_text()) if arguments.deepspeed else None,
    }


def write_provenance(arguments: TrainArguments, world_size: int, accumulation: int, backend: str = "NO") -> None:
    """Write config.yaml once and append to environment.json: a resumed run lists every environment it ran in."""
    folder = Path(str(arguments.output_dir))
    config_file = folder / CONFIG_FILE
    if not config_file.exists():
        write_text(config_file, yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))
    environment_file = folder / ENVIRONMENT_FILE
    history = json.loads(environment_file.read_text(encoding="utf-8")) if environment_file.exists() else []
    history.append(describe_environment(arguments, world_size, accumulation, backend))
    write_json(environment_file, history)
