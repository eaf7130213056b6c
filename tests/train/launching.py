"""Starting tests' runs on two ranks, and comparing what they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Ungrouped, so that ranks meet batches of different modality in the same step; a test checks that they do.
SHARED = {"group_by_modality_length": False, "activation_checkpointing": True, "lora_dropout": 0.0, "max_steps": 6}


def variables() -> dict[str, str]:
    """An environment for a launcher, without what another one left."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def launch(runs: list[list[str]], folder: Path, **plan: object) -> subprocess.CompletedProcess[str]:
    """Run recipes one after another under torchrun on two ranks, with the faults of `zero_worker.py`."""
    file = folder / "plan.json"
    file.write_text(json.dumps({"runs": runs, **plan}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("zero_worker.py")), str(file)]
    return subprocess.run(command, cwd=REPOSITORY, env=variables(), capture_output=True, text=True, timeout=900)


def run_on_two_ranks(runs: list[list[str]], folder: Path, **plan: object) -> str:
    """The same for runs that end well. -> what they said"""
    result = launch(runs, folder, **plan)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


def zero(stage: str) -> str:
    """A DeepSpeed file of the repository."""
    return str(REPOSITORY / "configs" / "deepspeed" / f"{stage}.json")


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_deepspeed_ran(run: Path, step: int = 6) -> None:
    assert json.loads((run / "environment.json").read_text())[-1]["backend"] == "DEEPSPEED"
    shards = list((run / f"checkpoint-{step}" / f"global_step{step}").glob("*zero_pp_rank_*optim_states.pt"))
    assert len(shards) == 2


def assert_same_run(run: Path, reference: Path, tolerance: float = 1e-4) -> None:
    """Losses of all steps to 1e-4, and every saved weight."""
    assert losses_of(run) == pytest.approx(losses_of(reference), rel=1e-4)
    files = sorted(file.name for file in reference.glob("*.safetensors"))
    found = {file.name for file in run.glob("*.safetensors")} - {"gathered.safetensors"}
    assert files and files == sorted(found)
    for name in files:
        expected, weights = load_file(reference / name), load_file(run / name)
        assert expected.keys() == weights.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(
                weights[key], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


def assert_saved_what_was_gathered(run: Path) -> None:
    """Every trained weight is in the saved files, bit by bit, and under its own name."""
    gathered = load_file(run / "gathered.safetensors")
    saved = {}
    for file in run.glob("*.safetensors"):
        if file.name != "gathered.safetensors":
            saved |= load_file(file)
    assert gathered
    for name, tensor in gathered.items():
        plain = name.removeprefix("base_model.model.")
        lora = name.replace(".default.", ".")
        key = next(key for key in (lora, plain, plain.removeprefix("model.")) if key in saved)
        assert torch.equal(saved[key], tensor), name


def assert_same_bits(run: Path, straight: Path) -> None:
    """A run that was interrupted and one that was not."""
    assert losses_of(run) == losses_of(straight)
    for file in straight.glob("*.safetensors"):
        expected, found = load_file(file), load_file(run / file.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def interrupt(run: Path, step: int) -> None:
    """Bring a finished run into the state it had just after a checkpoint."""
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    for file in [*run.glob("*.safetensors"), run / "finished.json"]:
        file.unlink()
