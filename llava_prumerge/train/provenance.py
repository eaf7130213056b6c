"""What ran: resolved settings, revision of the code, versions of its libraries; written beside every run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.preflight import CONFIG_FILE

ENVIRONMENT_FILE = "environment.json"
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
)
ENVIRONMENT_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")


def git_revision(folder: Path) -> dict[str, Any]:
    """Commit of the code in `folder` and whether tracked files differ from it; None where git cannot tell."""
    try:
        revision = run_git(folder, "rev-parse", "HEAD")
        changed = run_git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}
    return {"revision": revision, "dirty": bool(changed)}


def run_git(folder: Path, *command: str) -> str:
    """Output of one git command, or an exception."""
    result = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=30
    )
    return result.stdout.strip()


def describe_environment(arguments: TrainArguments, world_size: int, accumulation: int, backend: str) -> dict[str, Any]:
    """Revision, versions and machine, as plain JSON values."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": [sys.executable, *sys.argv],
        "code": git_revision(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "variables": {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ},
        "backend": backend,
        "world_size": world_size,
        "accumulation_steps": accumulation,
        "deepspeed": json.loads(Path(arguments.deepspeed).read_text()) if arguments.deepspeed else None,
    }


def write_provenance(arguments: TrainArguments, world_size: int, accumulation: int, backend: str = "NO") -> None:
    """Write config.yaml once and append to environment.json: a resumed run lists every environment it ran in."""
    folder = Path(str(arguments.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / CONFIG_FILE
    if not config_file.exists():
        config_file.write_text(yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False), encoding="utf-8")
    environment_file = folder / ENVIRONMENT_FILE
    history = json.loads(environment_file.read_text(encoding="utf-8")) if environment_file.exists() else []
    history.append(describe_environment(arguments, world_size, accumulation, backend))
    environment_file.write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
