"""DeepSpeed on two CPU ranks equals one process without it: losses, the saved model, and a run that is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.launching import (
    SHARED,
    assert_deepspeed_ran,
    assert_same_bits,
    assert_same_run,
    assert_saved_what_was_gathered,
    interrupt,
    run_on_two_ranks,
    zero,
)

from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.assembly import build_trainer
from llava_prumerge.train.run import main

METHODS = {
    "prumerge_plus": {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}},
    "atp_llava": {"decoder": {"name": "atp_llava", "layers": [1, 2], "target": 6}},
    "rank_schedule": {"decoder": {"name": "rank_schedule", "rates": [1, 0.8, 0.4], "rows": "text"}},
}
CASES = [
    ("projector", "prumerge_plus"),
    ("lora", "prumerge_plus"),
    ("full", "prumerge_plus"),
    ("lora", "atp_llava"),
    ("full", "atp_llava"),
    ("lora", "rank_schedule"),
]


def recipe_of(world, stage: str, method: str, run: Path, **changes: object) -> list[str]:
    """A run of the matrix. Modalities are mixed but for full PruMerge+, which takes LLaVA's order."""
    grouped = {"group_by_modality_length": True} if (stage, method) == ("full", "prumerge_plus") else {}
    values = SHARED | grouped | {"reduction": METHODS[method], "method_lr": 0.01}
    return world.recipe(stage, run, **(values | changes))


def assert_modalities_differ_between_ranks(world, folder: Path) -> None:
    """In some step one rank has images and the other has none."""
    trainer = build_trainer(load_arguments([*world.recipe("lora", folder / "order", **SHARED), world.prumerge_plus]))
    images = [trainer.train_dataset.lengths[i] > 0 for i in trainer._get_train_sampler()]
    halves = [(any(images[i : i + 2]), any(images[i + 2 : i + 4])) for i in range(0, 24, 4)]
    assert any(first != second for first, second in halves)


def test_zero2_and_zero3_equal_one_process(world, tmp_path) -> None:
    """What `make test` runs of the matrix below."""
    assert_modalities_differ_between_ranks(world, tmp_path)
    reference = tmp_path / "reference"
    assert main([*world.recipe("lora", reference, **SHARED), world.prumerge_plus]) == 0
    runs = [
        [*world.recipe("lora", tmp_path / name, **SHARED, deepspeed=zero(name), merge=True), world.prumerge_plus]
        for name in ("zero2", "zero3")
    ]
    run_on_two_ranks(runs, tmp_path, gather=True)
    for name in ("zero2", "zero3"):
        assert_deepspeed_ran(tmp_path / name)
        assert_same_run(tmp_path / name, reference)
        assert_saved_what_was_gathered(tmp_path / name)
    first, second = (load_file(tmp_path / name / "merged" / "model.safetensors") for name in ("zero2", "zero3"))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def references(world, tmp_path_factory) -> Path:
    """Each case in one process, without DeepSpeed."""
    folder = tmp_path_factory.mktemp("references")
    assert_modalities_differ_between_ranks(world, folder)
    for stage, method in CASES:
        assert main(recipe_of(world, stage, method, folder / f"{stage}-{method}")) == 0
    return folder


@pytest.mark.zero
@pytest.mark.parametrize("backend", ["zero2", "zero3", "zero3_offload"])
def test_every_stage_and_method_on_every_backend(world, references, tmp_path, backend) -> None:
    """Equal to one process; what is saved is what the ranks hold together; continued from the middle, the same bits."""
    recipes = {
        f"{stage}-{method}": recipe_of(world, stage, method, tmp_path / f"{stage}-{method}", deepspeed=zero(backend))
        for stage, method in CASES
    }
    run_on_two_ranks(list(recipes.values()), tmp_path, gather=True)
    for name in recipes:
        run = tmp_path / name
        assert_deepspeed_ran(run)
        # Adam's first steps divide by gradients near zero: learned thresholds differ by a little more than losses do.
        assert_same_run(run, references / name, tolerance=1e-4 if "prumerge" in name else 5e-4)
        assert_saved_what_was_gathered(run)
        assert (run / "method.safetensors").exists() == (name == "lora-atp_llava")
        shutil.copytree(run, tmp_path / "straight" / name)
        interrupt(run, 3)
    run_on_two_ranks(list(recipes.values()), tmp_path, gather=True)
    for name in recipes:
        assert len(json.loads((tmp_path / name / "environment.json").read_text())) == 2
        assert_same_bits(tmp_path / name, tmp_path / "straight" / name)


@pytest.mark.zero
@pytest.mark.parametrize("backend", ["zero2", "zero3", "zero3_offload"])
def test_resume_draws_the_same_dropout(world, tmp_path, backend) -> None:
    run = tmp_path / "run"
    shared = SHARED | {"lora_dropout": 0.05, "deepspeed": zero(backend)}
    recipe = [*world.recipe("lora", run, **shared), world.prumerge_plus]
    run_on_two_ranks([recipe], tmp_path)
    shutil.copytree(run, tmp_path / "straight")
    interrupt(run, 3)
    run_on_two_ranks([recipe], tmp_path)
    assert_same_bits(run, tmp_path / "straight")


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
