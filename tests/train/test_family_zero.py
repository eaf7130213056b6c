"""DeepSpeed ZeRO-3 on two CPU ranks, one with images and one with text alone, for every family: losses and weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train.family_world import TRAINED, given
from train.launching import (
    assert_deepspeed_ran,
    assert_same_run,
    assert_saved_what_was_gathered,
    run_on_two_ranks,
    zero,
)

from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.assembly import build_trainer
from llava_prumerge.train.run import main

SHARED = {
    "global_batch": 2,
    "per_device_batch": 1,
    "lora_dropout": 0.0,
    "activation_checkpointing": True,
    "save_steps": 4,
}
FULL = ("llava_next", "video_llava", "internvl", "qwen3_vl")
"""One of each kind: tiles in one map, two towers, tiles alone, native size with features for later layers."""


def values_of(families: Path, name: str, **more: Any) -> dict[str, Any]:
    return given(families, name) | SHARED | {"learning_rate": 1e-3, "projector_lr": 1e-3} | more


def assert_a_rank_has_text_alone(recipe: list[str]) -> None:
    trainer = build_trainer(load_arguments(recipe))
    images = [trainer.train_dataset.lengths[index] > 0 for index in trainer._get_train_sampler()]
    assert any(first != second for first, second in zip(images[::2], images[1::2], strict=True))


@pytest.mark.zero
@pytest.mark.parametrize("stage", ["lora", "full"])
def test_families_under_zero3_equal_one_process(world, families: Path, tmp_path: Path, stage: str) -> None:
    names = TRAINED if stage == "lora" else FULL
    for name in names:
        assert main(world.recipe(stage, tmp_path / "one" / name, **values_of(families, name))) == 0
    assert_a_rank_has_text_alone(world.recipe(stage, tmp_path / "order", **values_of(families, names[0])))
    sharded = values_of(families, "", deepspeed=zero("zero3"))
    recipes = [
        world.recipe(stage, tmp_path / "two" / name, **sharded | {"model": str(families / name)}) for name in names
    ]
    run_on_two_ranks(recipes, tmp_path, gather=True)
    for name in names:
        assert_deepspeed_ran(tmp_path / "two" / name, 4)
        assert_same_run(tmp_path / "two" / name, tmp_path / "one" / name, tolerance=5e-4)
        assert_saved_what_was_gathered(tmp_path / "two" / name)
