"""Kills aimed into what a run writes: into a checkpoint, into its final save, between two changes and inside a file.

Each is followed by the same command, which must end as the run that was not killed: same losses, same weights, bit by bit.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from train.killing import Runs, assert_same_result

from llava_prumerge.ground.locks import LOCK_FILES
from llava_prumerge.train.checkpoints import list_checkpoints, list_files, read_fault
from llava_prumerge.train.preflight import FINISHED_FILE, MERGED_FOLDER

AIMS = 7
"""Kills between two changes, spread evenly over all changes of a part."""
SHARES = (0.3, 0.99)
"""Of the largest files: how much of each is there when the kill comes."""


class Straight(NamedTuple):
    """A run that was not killed.

    Attributes:
        run: its folder, with checkpoints 2 and 4.
        recipe: its command line, for another folder behind `output_dir=`.
        changes: by part, how many changes of files its last start made there.
    """

    run: Path
    recipe: list[str]
    changes: dict[str, int]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["lora", "full"])
def straight(world, runs: Runs, tmp_path_factory, request) -> Straight:
    folder = tmp_path_factory.mktemp(request.param)
    values = {"max_steps": 4, "save_steps": 2, "save_total_limit": 1, "lora_dropout": 0.1, "merge": True}
    recipe = [*world.recipe(request.param, folder / "run", **values), world.prumerge_plus, "save_total_limit=2"]
    runs.start(recipe)
    assert runs.status() == 0
    found = {}
    for part, goes_on_from in (("checkpoint", 2), ("end", 4)):
        run = folder / part
        copy_stopped(folder / "run", run, goes_on_from)
        runs.start([*recipe, f"output_dir={run}", "save_total_limit=1"], aim(run, part, count=str(folder / "count")))
        assert runs.status() == 0
        found[part] = int((folder / "count").read_text())
        assert_ends_as(run, folder / "run")
    return Straight(folder / "run", recipe, found)


def aim(run: Path, part: str, **where: object) -> dict[str, object]:
    return {"run": str(run), "part": part, **where}


def copy_stopped(straight: Path, run: Path, step: int) -> None:
    """The run as a kill right behind a checkpoint leaves it."""
    ending = {path.name for path in straight.iterdir() if path.suffix == ".safetensors"}
    ending |= {FINISHED_FILE, MERGED_FOLDER, "config.json", "base.json", f"checkpoint-{6 - step}"}
    shutil.copytree(straight, run, ignore=lambda place, names: ending if Path(place) == straight else set())


def assert_ends_as(run: Path, straight: Path) -> None:
    """Result, complete model and checkpoints; nothing is left of what was being written."""
    assert_same_result(run, straight)
    if (straight / MERGED_FOLDER).exists():
        for name in list_files(straight / MERGED_FOLDER):
            assert (run / MERGED_FOLDER / name).read_bytes() == (straight / MERGED_FOLDER / name).read_bytes(), name
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-4"]
    left = {path.name for path in run.iterdir()} - {path.name for path in straight.iterdir()} - {*LOCK_FILES}
    assert not left, left


def kill_and_go_on(straight: Straight, runs: Runs, run: Path, part: str, **where: object) -> int:
    """-> how the start that was aimed at has ended"""
    copy_stopped(straight.run, run, {"checkpoint": 2, "end": 4}[part])
    recipe = [*straight.recipe, f"output_dir={run}", "save_total_limit=1"]
    runs.start(recipe, aim(run, part, **where))
    status = runs.status()
    if (run / FINISHED_FILE).exists():  # killed behind its last change
        assert_ends_as(run, straight.run)
    assert all(read_fault(path) is None for path in list_checkpoints(run)), (
        "a checkpoint's name is a whole checkpoint's"
    )
    runs.start(recipe)
    assert runs.status() == 0
    assert_ends_as(run, straight.run)
    shutil.rmtree(run)
    return status


@pytest.mark.slow
@pytest.mark.parametrize("part", ["checkpoint", "end"])
def test_killed_between_two_changes_of_files(straight, runs, tmp_path, part) -> None:
    last = straight.changes[part]
    assert last > AIMS
    for number in sorted({2, last - 1, *(1 + round(n * (last - 1) / (AIMS - 1)) for n in range(AIMS))}):
        status = kill_and_go_on(straight, runs, tmp_path / f"{number}", part, at=number)
        assert status == -signal.SIGKILL, number


@pytest.mark.slow
@pytest.mark.parametrize("part", ["checkpoint", "end"])
def test_killed_in_the_middle_of_a_file(straight, runs, tmp_path, part) -> None:
    """The kernel ends the process when a file grows beyond a size: what stands there then is a torn file."""
    place = straight.run / ("checkpoint-4" if part == "checkpoint" else "")
    largest = max(path.stat().st_size for path in place.glob("*.*") if path.is_file())
    for share in SHARES:
        status = kill_and_go_on(straight, runs, tmp_path / f"{share}", part, bytes=int(largest * share))
        assert status == -signal.SIGXFSZ, share
