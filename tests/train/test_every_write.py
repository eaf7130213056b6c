"""Each write of a run refused in turn: one line, status 2, nothing half written, and the second start ends as ever."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_prumerge.train.checkpoints import list_checkpoints, read_fault
from llava_prumerge.train.run import main

REFUSALS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT)
EVENTS = ("open", "os.rename", "os.mkdir", "os.truncate")


class FullDisk:
    """Refuses the n-th operation that changes something below a folder; the interpreter tells of each before it is done."""

    def __init__(self) -> None:
        self.folder, self.fails_at, self.seen = "", 0, 0
        sys.addaudithook(self.hook)  # for good: it does nothing while `folder` is empty

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.folder or event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        place = os.fsdecode(arguments[0])
        if not place.startswith(self.folder):
            return
        self.seen += 1
        if self.seen == self.fails_at:
            refused = REFUSALS[self.fails_at % len(REFUSALS)]
            raise OSError(refused, os.strerror(refused), place)

    def count(self, folder: Path, fails_at: int) -> None:
        self.folder, self.fails_at, self.seen = str(folder), fails_at, 0

    def stop(self) -> int:
        self.folder = ""
        return self.seen


DISK = FullDisk()


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    assert main(recipe(world, run)) == 0
    return run


def recipe(world, run: Path) -> list[str]:
    """Two steps of LoRA with two checkpoints, a method, and a merged model."""
    method = {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}}
    return world.recipe("lora", run, max_steps=2, save_steps=1, save_total_limit=1, merge=True, reduction=method)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    DISK.stop()


def assert_one_line(capsys, run: Path, what: object) -> None:
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and "Traceback" not in told[0], (what, told)


def assert_nothing_half_written(run: Path, what: object) -> None:
    for checkpoint in list_checkpoints(run) if run.exists() else []:
        assert read_fault(checkpoint) is None, (what, checkpoint)
    for file in run.glob("*.json"):
        json.loads(file.read_text())
    for file in run.glob("*.yaml"):
        assert yaml.safe_load(file.read_text())
    for file in run.glob("*.safetensors"):
        load_file(file)
    if (run / "merged").exists():
        load_file(run / "merged" / "model.safetensors")


def assert_ends_as(run: Path, straight: Path, what: object) -> None:
    for file in (*straight.glob("*.safetensors"), straight / "merged" / "model.safetensors"):
        expected, found = load_file(file), load_file(run / file.relative_to(straight))
        assert expected.keys() == found.keys() and all(torch.equal(found[k], v) for k, v in expected.items()), what
    assert not [
        path.name for path in run.iterdir() if "unfinished" in path.name or path.name in (".result", ".lock")
    ], what


def fail_at(world, straight: Path, folder: Path, number: int, capsys) -> bool:
    """One run whose `number`-th write fails, and its second start. -> whether there was such a write"""
    run = folder / f"run{number}"
    words = recipe(world, run)
    capsys.readouterr()
    DISK.count(run, number)
    status = main(words)
    seen = DISK.stop()
    if seen < number:
        assert status == 0
        return False
    if status != 0:  # what is only tidied away may fail without harm
        assert status == 2, number
        assert_one_line(capsys, run, number)
    assert_nothing_half_written(run, number)
    assert main(words) == 0, number
    assert_ends_as(run, straight, number)
    shutil.rmtree(run)
    return True


def test_some_writes_fail(world, straight, tmp_path, capsys) -> None:
    """A few of them; the slow test takes all."""
    for number in (1, 9, 30, 55):
        assert fail_at(world, straight, tmp_path, number, capsys)


@pytest.mark.slow
def test_every_write_fails_once(world, straight, tmp_path, capsys) -> None:
    number = 1
    while fail_at(world, straight, tmp_path, number, capsys):
        number += 1
    assert number > 60
    sys.stdout.write(f"{number - 1} writes failed in turn\n")


@pytest.mark.parametrize("size", [0, 2_000, 40_000])
def test_files_may_not_grow_beyond_a_size(world, straight, tmp_path, capsys, size) -> None:
    """EFBIG from the kernel, in the middle of a write, whatever library writes."""
    run = tmp_path / "run"
    words = recipe(world, run)
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        status = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert_one_line(capsys, run, size)
    assert_nothing_half_written(run, size)
    assert main(words) == 0
    assert_ends_as(run, straight, size)
