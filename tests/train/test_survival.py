"""Whatever state our own files are in, the same command goes on; two runs of one folder, Ctrl-C, and the end of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.ground import locks
from llava_prumerge.ground.locks import Holder, hold
from llava_prumerge.train.checkpoints import list_checkpoints
from llava_prumerge.train.run import main


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> Path:
    """An uninterrupted run of six steps."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert main(world.recipe("projector", run, save_steps=2)) == 0
    return run


@pytest.fixture
def killed(straight: Path, tmp_path: Path) -> Path:
    """The same as a kill behind checkpoint-4 leaves it."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for name in ("checkpoint-6", "mm_projector.safetensors", "config.json", "base.json", "finished.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


def continue_run(run: Path) -> int:
    return main([str(run.parent / "recipe.yaml"), f"output_dir={run}"])


@pytest.fixture(autouse=True)
def recipe(straight: Path, tmp_path: Path) -> None:
    shutil.copy(straight / "config.yaml", tmp_path / "recipe.yaml")


def assert_same(run: Path, straight: Path, from_step: int = 1) -> None:
    expected, found = (load_file(folder / "mm_projector.safetensors") for folder in (straight, run))
    assert expected.keys() == found.keys() and all(torch.equal(found[key], value) for key, value in expected.items())
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(from_step, 7))


STATES = {
    "empty": b"",
    "cut": b'{"steps": 6, "los',
    "no UTF-8": b"\xff\xfe{}",
    "of another kind": b"[1, 2]",
    "a number": b"7",
    "deep": b"[" * 5_000,
    "binary": bytes(range(256)),
}
FILES = (
    "environment.json",
    "made_from.json",
    "config.yaml",
    "metrics.jsonl",
    "finished.json",
    "skipped.jsonl",
    "quarantine.jsonl",
)


@pytest.mark.parametrize("state", STATES)
def test_torn_files_of_ours_stop_no_run(killed: Path, straight: Path, caplog, state: str) -> None:
    """All of them at once, of a run that has two steps to go."""
    for name in FILES:
        (killed / name).write_bytes(b"7: 8: 9" if (state, name) == ("a number", "config.yaml") else STATES[state])
    assert continue_run(killed) == 0
    for name in FILES:
        told = [record.getMessage() for record in caplog.records if f"/{name}" in record.getMessage()]
        if name.endswith(("n", "yaml")) and name != "made_from.json" or name.endswith(".jsonl") and STATES[state]:
            assert len(told) == 1 and re.search(r"passed over|kept as", told[0]), (name, told)
    assert_same(killed, straight, from_step=5)
    assert len(json.loads((killed / "environment.json").read_text())) == 1
    assert json.loads((killed / "finished.json").read_text())["steps"] == 6
    assert json.loads((killed / "made_from.json").read_text())["version"] == 1
    assert "learning_rate: 0.001" in (killed / "config.yaml").read_text()


def test_a_torn_copy_of_the_recipe_of_a_run_that_has_ended_is_refused_by_name(
    straight: Path, tmp_path: Path, capsys
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "config.yaml").write_text("")
    assert continue_run(run) == 2
    assert re.fullmatch(
        r"error: \S+/config.yaml cannot be read .*; choose another output_dir\n", capsys.readouterr().err
    )


def test_checkpoints_copied_alone_into_a_folder_go_on(killed: Path, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "copied"
    run.mkdir()
    shutil.copytree(killed / "checkpoint-2", run / "checkpoint-2")
    (run / "checkpoint-4").symlink_to(killed / "checkpoint-4")
    (run / "notes.txt").write_text("mine")
    assert continue_run(run) == 0
    expected, found = (load_file(folder / "mm_projector.safetensors") for folder in (straight, run))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert (run / "notes.txt").read_text() == "mine"


def test_a_result_that_lost_a_file_is_made_again(straight: Path, tmp_path: Path, caplog) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "mm_projector.safetensors").unlink()
    assert continue_run(run) == 0
    assert "finished.json is passed over: mm_projector.safetensors is missing" in caplog.text
    assert_same(run, straight)


def test_a_second_run_of_one_folder_is_refused(killed: Path, capsys, monkeypatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*")}
    other = os.getppid()
    here = Holder.here()
    holder = Holder(here.host, other, locks._start_of(other), here.boot)
    monkeypatch.setattr(locks.fcntl, "lockf", lambda *words: (_ for _ in ()).throw(OSError(38, "no locks")))
    (killed / ".holder").write_text(json.dumps(vars(holder)))
    assert continue_run(killed) == 2
    assert capsys.readouterr().err == f"error: {killed}: process {other} on {here.host} is at work there\n"
    (killed / ".holder").unlink()
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*")}.items() <= before.items() | {
        (killed, killed.stat().st_mtime_ns)
    }
    with hold(killed, inside=True):
        assert continue_run(killed) == 2
    assert "this process is at work there already" in capsys.readouterr().err
    assert continue_run(killed) == 0


def test_a_holder_that_was_killed_is_named_and_passed_over(killed: Path, straight: Path, caplog) -> None:
    here = Holder.here()
    (killed / ".holder").write_text(json.dumps(vars(Holder(here.host, 1 << 30, "1", here.boot))))
    caplog.set_level("INFO")
    assert continue_run(killed) == 0
    assert f"process {1 << 30} on {here.host} was at work here" in caplog.text
    assert_same(killed, straight)
    assert not {".lock", ".holder"} & {path.name for path in killed.iterdir()}


def test_a_run_that_cannot_be_built_leaves_no_folder(world, tmp_path: Path, capsys) -> None:
    run = tmp_path / "new"
    assert main([*world.recipe("projector", run), "template=nonsense"]) == 2
    assert not run.exists() and capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def foreground() -> Iterator[None]:
    """SIGINT as a terminal's job has it: whatever a shell starts in the background begins with it ignored, and so do its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, times: int) -> None:
    """Ctrl-C while the model computes that step, once per micro-batch."""
    from llava_prumerge.train.trainer import LlavaTrainer

    whole, sent = LlavaTrainer.compute_loss, []

    def compute(self, *words, **named):
        if self.state.global_step == step - 1 and len(sent) < times:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return whole(self, *words, **named)

    monkeypatch.setattr(LlavaTrainer, "compute_loss", compute)


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_saves_the_step_and_goes_on(world, straight: Path, tmp_path: Path, capsys, caplog, monkeypatch) -> None:
    run = tmp_path / "run"
    caplog.set_level("INFO")
    with monkeypatch.context() as inner:
        interrupt_at(inner, 3, times=1)
        status = continue_run(run)
    assert status == 130
    assert [path.name for path in list_checkpoints(run)][-1] == "checkpoint-3"
    assert caplog.messages[-1] == "stopped at step 3; the same command continues" and capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert continue_run(run) == 0
    assert_same(run, straight)


@pytest.mark.usefixtures("foreground")
def test_a_second_ctrl_c_ends_at_once_in_one_line(straight: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as inner:
        interrupt_at(inner, 4, times=2)
        assert continue_run(run) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues from the newest checkpoint\n"
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not (run / ".lock").exists()
    assert continue_run(run) == 0
    assert_same(run, straight)
