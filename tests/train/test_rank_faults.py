"""Faults on one of two ranks: a step that is not finite is skipped on both, and a rank that dies takes the job with it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.launching import SHARED, launch, losses_of, run_on_two_ranks, zero

from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.train.checkpoints import list_checkpoints
from llava_prumerge.train.run import main

BACKENDS = {"ddp": None, "zero2": zero("zero2"), "zero3": zero("zero3"), "zero3_offload": zero("zero3_offload")}
NAN_SAMPLE = "sample-4"


def skipped_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


def rates_of(run: Path) -> list[float]:
    return [json.loads(line)["learning_rate"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(run: Path, reference: Path) -> None:
    for file in reference.glob("*.safetensors"):
        found = load_file(run / file.name)
        for name, tensor in load_file(file).items():
            assert torch.isfinite(found[name]).all()
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.zero
def test_a_picture_that_is_nan_on_one_rank_skips_the_step_on_all(world, tmp_path, monkeypatch) -> None:
    """On each backend: the same step, the sample named, and the run ends as one process with the same fault."""
    original = LlavaDataset.__getitem__

    def get(self, index):
        item = original(self, index)
        return item | {"pixel_values": item["pixel_values"] * math.nan} if item["id"] == NAN_SAMPLE else item

    monkeypatch.setattr(LlavaDataset, "__getitem__", get)
    shared = SHARED | {"max_grad_norm": 0.5, "save_steps": 0}
    assert main(world.recipe("lora", tmp_path / "reference", **shared)) == 0
    monkeypatch.undo()
    (expected,) = skipped_of(tmp_path / "reference")
    assert expected["ids"] == [NAN_SAMPLE]
    runs = [world.recipe("lora", tmp_path / name, **shared, deepspeed=file) for name, file in BACKENDS.items()]
    said = run_on_two_ranks(runs, tmp_path, nan_picture=NAN_SAMPLE)
    assert said.count(f"step {expected['step']} skipped: loss is not finite; samples {NAN_SAMPLE}") >= len(BACKENDS)
    losses = losses_of(tmp_path / "reference")
    assert [step for step, loss in enumerate(losses, start=1) if math.isnan(loss)] == [expected["step"]]
    for name in BACKENDS:
        assert skipped_of(tmp_path / name) == [expected]
        assert rates_of(tmp_path / name) == rates_of(tmp_path / "reference")
        assert losses_of(tmp_path / name) == pytest.approx(losses, rel=1e-4, nan_ok=True)
        assert_same_weights(tmp_path / name, tmp_path / "reference")


@pytest.mark.zero
def test_a_gradient_that_is_nan_on_one_rank_skips_the_step_on_all(world, tmp_path) -> None:
    """No loss shows it; every sample of the step, of both ranks, is named."""
    runs = [world.recipe("lora", tmp_path / name, **SHARED, deepspeed=file) for name, file in BACKENDS.items()]
    run_on_two_ranks(runs, tmp_path, nan_gradient={"rank": 1, "step": 3})
    for name in BACKENDS:
        (entry,) = skipped_of(tmp_path / name)
        assert (entry["step"], entry["not_finite"]) == (3, "gradient norm") and len(set(entry["ids"])) == 4
        assert all(math.isfinite(loss) for loss in losses_of(tmp_path / name))
    for name in BACKENDS:
        assert_same_weights(tmp_path / name, tmp_path / "ddp")


@pytest.mark.zero
def test_several_in_a_row_end_all_ranks(world, tmp_path) -> None:
    runs = [world.recipe("lora", tmp_path / "run", **SHARED, deepspeed=BACKENDS["zero3"], max_skipped_steps=1)]
    result = launch(runs, tmp_path, nan_picture=NAN_SAMPLE)
    assert result.returncode != 0 and result.stderr.count("1 steps in a row were not finite") == 2
    assert NAN_SAMPLE in result.stderr and not (tmp_path / "run" / "finished.json").exists()


@pytest.mark.zero
@pytest.mark.parametrize("how", ["raise", "kill"])
@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_a_rank_that_dies_ends_the_job(world, tmp_path, backend, how) -> None:
    """While the other waits for it in a collective; checkpoints written so far stay sound, and the run goes on from them."""
    run = tmp_path / "run"
    recipe = world.recipe("lora", run, **SHARED, deepspeed=BACKENDS[backend])
    started = time.monotonic()
    result = launch([recipe], tmp_path, die={"rank": 1, "step": 5, "how": how})
    assert result.returncode != 0 and time.monotonic() - started < 600, "gloo would wait half an hour"
    said = result.stdout + result.stderr
    if how == "raise":
        assert "ValueError: the fault that this test injects" in said and "Traceback" in said
    else:
        assert "SIGKILL" in said
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-3"]
    assert not (run / "finished.json").exists() and len(losses_of(run)) == 4
    run_on_two_ranks([recipe], tmp_path)
    assert len(losses_of(run)) == 6
