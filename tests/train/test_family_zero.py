"""DeepSpeed ZeRO-3 on two CPU ranks, one with images and one with text alone, for every family: losses and weights of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train.family_world import TRAINED, given, write_videos
from train.launching import (
    assert_deepspeed_ran,
    assert_same_run,
    assert_saved_what_was_gathered,
    run_on_two_ranks,
    zero,
)

from llava_prumerge.methods import registry
from llava_prumerge.model.families import family_of
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
FULL = ("llava_next", "video_llava", "internvl", "qwen3_vl", "gemma3", "idefics3", "paligemma")
"""One of each kind: tiles in one map, two towers, tiles alone, native size with features for later layers, ready masks of blocks, \
tiles apart from each other, a prompt that sees itself."""
WITH_VIDEOS = [name for name in TRAINED if family_of(name).videos is not None]
LEARNT = {"vision": {"name": "learnt", "width": 128}}


def values_of(families: Path, name: str, **more: Any) -> dict[str, Any]:
    return given(families, name) | SHARED | {"learning_rate": 1e-3, "projector_lr": 1e-3} | more


def media_of_steps(recipe: list[str]) -> list[tuple[set[str], set[str]]]:
    """What the two ranks' samples of each step show."""
    trainer = build_trainer(load_arguments(recipe))
    rows = [trainer.train_dataset.dataset.rows[index] for index in trainer._get_train_sampler()]
    shown = [{kind for kind in ("image", "video") if row[kind]} for row in rows]
    return list(zip(shown[::2], shown[1::2], strict=True))


def assert_equal_to_one_process(world, tmp_path: Path, stage: str, runs: dict[str, dict[str, Any]]) -> None:
    for name, values in runs.items():
        assert main(world.recipe(stage, tmp_path / "one" / name, **values)) == 0
    sharded = {name: values | {"deepspeed": zero("zero3")} for name, values in runs.items()}
    recipes = [world.recipe(stage, tmp_path / "two" / name, **values) for name, values in sharded.items()]
    run_on_two_ranks(recipes, tmp_path, gather=True)
    for name in runs:
        assert_deepspeed_ran(tmp_path / "two" / name, 4)
        assert_same_run(tmp_path / "two" / name, tmp_path / "one" / name, tolerance=5e-4)
        assert_saved_what_was_gathered(tmp_path / "two" / name)


@pytest.mark.zero
@pytest.mark.parametrize("stage", ["lora", "full"])
def test_families_under_zero3_equal_one_process(world, families: Path, tmp_path: Path, stage: str) -> None:
    names = TRAINED if stage == "lora" else FULL
    steps = media_of_steps(world.recipe(stage, tmp_path / "order", **values_of(families, names[0])))
    assert any(bool(first) != bool(second) for first, second in steps), "a rank has text alone"
    assert_equal_to_one_process(world, tmp_path, stage, {name: values_of(families, name) for name in names})


@pytest.mark.zero
def test_videos_under_zero3_equal_one_process(world, families: Path, tmp_path: Path) -> None:
    """Ranks with a video, with an image and a video, and with text: where one tower serves both it is called as often everywhere."""
    more = {"data": str(write_videos(families)), "videos": str(families / "images"), "frames": 4}
    runs = {name: values_of(families, name, **more) for name in WITH_VIDEOS}
    steps = media_of_steps(world.recipe("lora", tmp_path / "order", **runs[WITH_VIDEOS[0]]))
    kinds = {frozenset(map(frozenset, step)) for step in steps}
    assert any(len(kind) == 2 for kind in kinds), "the ranks of a step differ in what they show"
    assert_equal_to_one_process(world, tmp_path, "lora", runs)


@pytest.fixture
def learnt() -> Iterator[str]:
    """The path of a reducer with parameters; what it registers here is forgotten."""
    before = registry.discover()
    yield str(Path(__file__).with_name("learnt_reducer.py"))
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


@pytest.mark.zero
def test_a_reducer_with_parameters_at_any_size_under_zero3(world, families: Path, tmp_path: Path, learnt: str) -> None:
    """It is called for images of each size; a rank with fewer sizes calls it as often as the others."""
    runs = {
        name: values_of(
            families, name, reduction=LEARNT, plugin=[learnt], method_lr=1e-2, data=str(families / "records.json")
        )
        for name in ("qwen2_vl", "qwen2_5_vl")
    }
    assert_equal_to_one_process(world, tmp_path, "lora", runs)
