"""DeepSpeed on two CPU ranks equals one process without it: losses, and the saved model."""

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

from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.assembly import build_trainer
from llava_prumerge.train.run import main

REPOSITORY = Path(__file__).resolve().parents[2]
# Ungrouped, so that ranks meet batches of different modality in the same step; the first test checks that they do.
SHARED = {"group_by_modality_length": False, "activation_checkpointing": True, "lora_dropout": 0.0, "max_steps": 6}


def run_on_two_ranks(runs: list[list[str]], folder: Path) -> None:
    """Run recipes one after another under torchrun."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(runs))
    variables = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("zero_worker.py")), str(plan)]
    result = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]


def zero(stage: str) -> str:
    return str(REPOSITORY / "configs" / "deepspeed" / f"{stage}.json")


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_deepspeed_ran(run: Path, step: int = 6) -> None:
    assert json.loads((run / "environment.json").read_text())[-1]["backend"] == "DEEPSPEED"
    shards = list((run / f"checkpoint-{step}" / f"global_step{step}").glob("*zero_pp_rank_*optim_states.pt"))
    assert len(shards) == 2


def assert_same_run(run: Path, reference: Path, tolerance: float = 1e-4) -> None:
    """Losses of all steps and every saved weight."""
    assert losses_of(run) == pytest.approx(losses_of(reference), rel=tolerance)
    files = sorted(file.name for file in reference.glob("*.safetensors"))
    assert files and files == sorted(file.name for file in run.glob("*.safetensors"))
    for name in files:
        expected, found = load_file(reference / name), load_file(run / name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(
                found[key], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


def assert_modalities_differ_between_ranks(world, folder: Path) -> None:
    """In some step one rank has images and the other has none."""
    trainer = build_trainer(load_arguments([*world.recipe("lora", folder / "order", **SHARED), world.prumerge_plus]))
    images = [trainer.train_dataset.lengths[i] > 0 for i in trainer._get_train_sampler()]
    halves = [(any(images[i : i + 2]), any(images[i + 2 : i + 4])) for i in range(0, 24, 4)]
    assert any(first != second for first, second in halves)


def test_zero2_and_zero3_equal_one_process(world, tmp_path) -> None:
    assert_modalities_differ_between_ranks(world, tmp_path)
    reference = tmp_path / "reference"
    assert main([*world.recipe("lora", reference, **SHARED), world.prumerge_plus]) == 0
    runs = [
        [*world.recipe("lora", tmp_path / name, **SHARED, deepspeed=zero(name), merge=True), world.prumerge_plus]
        for name in ("zero2", "zero3")
    ]
    run_on_two_ranks(runs, tmp_path)
    for name in ("zero2", "zero3"):
        assert_deepspeed_ran(tmp_path / name)
        assert_same_run(tmp_path / name, reference)
    assert_same_weights_merged(tmp_path)


def assert_same_weights_merged(folder: Path) -> None:
    first, second = (load_file(folder / name / "merged" / "model.safetensors") for name in ("zero2", "zero3"))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.zero
@pytest.mark.parametrize("backend", ["zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_every_stage_on_every_backend(world, tmp_path, backend, stage) -> None:
    shared = SHARED | ({"group_by_modality_length": True} if stage == "full" else {})
    reference, run = tmp_path / "reference", tmp_path / "run"
    assert main([*world.recipe(stage, reference, **shared), world.prumerge_plus]) == 0
    run_on_two_ranks([[*world.recipe(stage, run, **shared, deepspeed=zero(backend)), world.prumerge_plus]], tmp_path)
    assert_deepspeed_ran(run)
    assert_same_run(run, reference)


PRUNERS = {
    "atp_llava": {"name": "atp_llava", "layers": [1, 2], "target": 6},
    "rank_schedule": {"name": "rank_schedule", "rates": [1, 0.8, 0.4], "rows": "text"},
}


@pytest.mark.zero
@pytest.mark.parametrize("name", PRUNERS)
def test_pruners_under_zero_equal_one_process(world, tmp_path, name) -> None:
    """T4 for the decoder: a rank without images runs the same modules, and learned thresholds come out the same."""
    assert_modalities_differ_between_ranks(world, tmp_path)
    shared = SHARED | {"reduction": {"decoder": PRUNERS[name]}, "method_lr": 0.01, "merge": True}
    reference = tmp_path / "reference"
    assert main(world.recipe("lora", reference, **shared)) == 0
    runs = [
        world.recipe("lora", tmp_path / backend, **shared, deepspeed=zero(backend)) for backend in ("zero2", "zero3")
    ]
    run_on_two_ranks(runs, tmp_path)
    for backend in ("zero2", "zero3"):
        assert_deepspeed_ran(tmp_path / backend)
        assert_same_run(tmp_path / backend, reference, tolerance=5e-4)
    assert (reference / "method.safetensors").exists() == (name == "atp_llava")


@pytest.mark.zero
@pytest.mark.parametrize("backend", ["zero2", "zero3"])
def test_resume_under_zero_equals_the_straight_run(world, tmp_path, backend) -> None:
    shared = SHARED | {"lora_dropout": 0.05, "deepspeed": zero(backend)}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_on_two_ranks([[*world.recipe("lora", straight, **shared), world.prumerge_plus]], tmp_path)
    shutil.copytree(straight, resumed)
    for file in [*resumed.glob("*.safetensors"), resumed / "finished.json"]:
        file.unlink()
    shutil.rmtree(resumed / "checkpoint-6")
    run_on_two_ranks([[*world.recipe("lora", resumed, **shared), world.prumerge_plus]], tmp_path)
    assert losses_of(resumed) == losses_of(straight)
    for file in straight.glob("*.safetensors"):
        expected, found = load_file(file), load_file(resumed / file.name)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.zero
def test_bf16_under_zero3_trains_and_loads(world, tmp_path) -> None:
    from llava_prumerge.model.loading import load_model

    recipe = world.recipe("full", tmp_path / "run", **SHARED, precision="bf16", deepspeed=zero("zero3"))
    run_on_two_ranks([[*recipe, world.prumerge_plus]], tmp_path)
    assert_deepspeed_ran(tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model, _ = load_model(tmp_path / "run")
    assert model.model.reducer.name == "prumerge_plus"


@pytest.mark.zero
def test_plain_ddp_equals_one_process(world, tmp_path) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    assert main([*world.recipe("lora", reference, **SHARED), world.prumerge_plus]) == 0
    run_on_two_ranks([[*world.recipe("lora", run, **SHARED), world.prumerge_plus]], tmp_path)
    assert json.loads((run / "environment.json").read_text())[-1]["backend"] == "MULTI_CPU"
    assert_same_run(run, reference)
