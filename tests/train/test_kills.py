"""Runs that are killed, stopped and started again end as the one that was not: same losses, same weights, bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from train.killing import Runs, assert_same_result, losses_of, wait_for

from llava_prumerge.train.checkpoints import list_checkpoints, read_fault


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.close()


def kill_and_compare(world, runs: Runs, folder: Path, kills: int, steps: int, **changes: object) -> list[int]:
    """Kill a run `kills` times, each at a random moment after the step it had reached; then let it end.

    -> the steps from which it went on
    """
    values = {"max_steps": steps, "save_steps": 2, "save_total_limit": 2, "lora_dropout": 0.1} | changes
    straight, run = folder / "straight", folder / "run"
    assert runs.start([*world.recipe("lora", straight, **values), world.prumerge_plus]) and runs.status() == 0
    recipe, chance, resumed = [*world.recipe("lora", run, **values), world.prumerge_plus], random.Random(0), []
    for number in range(kills):
        newest = list_checkpoints(run)[-1:] if run.exists() else []
        resumed.append(int(newest[0].name.split("-")[1]) if newest else 0)
        goal = min(resumed[-1] + chance.randint(1, 4), steps - 1)
        pid = runs.start(recipe)
        # Older lines beyond the checkpoint go when training begins; only then does a line tell of this process.
        wait_for(lambda goal=goal, number=number: reached(run, goal, number), f"step {goal}")
        time.sleep(chance.random() * 0.15)  # in the middle of a step, or of a checkpoint being written
        os.kill(pid, signal.SIGKILL)
        assert runs.status() == -signal.SIGKILL
        sound = [path for path in list_checkpoints(run) if read_fault(path) is None]
        assert sound == list_checkpoints(run), "a checkpoint's name stands for a whole checkpoint"
    runs.start(recipe)
    assert runs.status() == 0
    assert len(json.loads((run / "environment.json").read_text())) == kills + 1
    assert_same_result(run, straight)
    return resumed


def reached(run: Path, goal: int, number: int) -> bool:
    """Whether the process after `number` others has taken the step `goal`."""
    file = run / "environment.json"
    try:
        started = len(json.loads(file.read_text())) > number
    except (OSError, ValueError):
        return False
    return started and max(losses_of(run), default=0) >= goal


def test_a_run_killed_twice_ends_as_the_straight_one(world, runs, tmp_path) -> None:
    resumed = kill_and_compare(world, runs, tmp_path, kills=2, steps=8)
    assert resumed[-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["prumerge_plus", "atp_llava"])
def test_a_run_killed_ten_times_ends_as_the_straight_one(world, runs, tmp_path, reduction) -> None:
    """Over several epochs, so that kills fall into each."""
    block = {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}}
    if reduction == "atp_llava":
        block["decoder"] = {"name": "atp_llava", "layers": [1, 2], "target": 6}
    (tmp_path / "method.yaml").write_text(json.dumps(block))
    resumed = kill_and_compare(world, runs, tmp_path, kills=10, steps=40, reduction=block)
    assert len(set(resumed)) > 5, "the kills must not all fall into one stretch"


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_saves_at_the_next_step_and_ends_well(world, runs, tmp_path, workers) -> None:
    """The whole group is signalled, as schedulers do: the process that loads the data must go on."""
    values = {"max_steps": 8, "save_steps": 0, "workers": workers}
    straight, run = tmp_path / "straight", tmp_path / "run"
    runs.start(world.recipe("projector", straight, **values))
    assert runs.status() == 0 and not list_checkpoints(straight)
    recipe = world.recipe("projector", run, **values)
    pid = runs.start(recipe)
    wait_for(lambda: len(losses_of(run)) >= 2, "two steps")
    os.killpg(pid, signal.SIGTERM)
    assert runs.status() == 0
    (checkpoint,) = list_checkpoints(run)
    assert read_fault(checkpoint) is None and not (run / "finished.json").exists()
    assert 2 <= int(checkpoint.name.split("-")[1]) == max(losses_of(run)) < 8
    runs.start(recipe)
    assert runs.status() == 0 and (run / "finished.json").exists()
    assert_same_result(run, straight)
