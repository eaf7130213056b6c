"""Checkpoints are whole or not there: what is refused, what is skipped, and what a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.checkpoints import (
    CheckpointError,
    check_room,
    digest_files,
    find_fault,
    list_checkpoints,
    list_files,
    newest_sound,
    publish,
    read_fault,
    rotate,
    seal,
)
from llava_prumerge.train.preflight import find_resume_point
from llava_prumerge.train.run import main


def make(run: Path, step: int, size: int = 4096) -> Path:
    """A sealed checkpoint with a state, a shard in a folder of its own, and weights."""
    folder = run / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "global_step" / "shard.pt").write_bytes(os.urandom(size))
    (folder / "model.safetensors").write_bytes(os.urandom(size))
    seal(folder, digest_files(folder, list_files(folder), sync=True), world_size=2)
    return folder


def truncate(folder: Path) -> None:
    file = folder / "global_step" / "shard.pt"
    os.truncate(file, file.stat().st_size - 1)


def flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(bytes(content))


FAULTS = {
    "a shard cut short": (truncate, "global_step/shard.pt has 4095 bytes of 4096"),
    "one bit flipped": (flip, r"model.safetensors is not what was written \(SHA-256\)"),
    "a file gone": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "half written": (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    "a torn manifest": (lambda folder: os.truncate(folder / "manifest.json", 60), "manifest.json cannot be read"),
    "an empty manifest": (lambda folder: os.truncate(folder / "manifest.json", 0), "manifest.json cannot be read"),
    "a manifest that is no text": (
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{}"),
        "manifest.json cannot be read",
    ),
    "a manifest of another kind": (
        lambda f: (f / "manifest.json").write_text('{"files": [], "world_size": 1}'),
        "manifest.json cannot be read",
    ),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "has no manifest.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_passed_over_and_the_fault_named(tmp_path: Path, fault: str) -> None:
    older, newer = make(tmp_path, 9), make(tmp_path, 10)
    assert newest_sound(list_checkpoints(tmp_path), read_fault) == (newer, [])
    spoil, reason = FAULTS[fault]
    spoil(newer)
    found, skipped = newest_sound(list_checkpoints(tmp_path), read_fault)
    assert found == older and [path for path, _ in skipped] == [newer]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(skipped[0][1])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "manifest" in fault])
def test_a_torn_manifest_does_not_keep_the_next_checkpoint_from_being_written(tmp_path: Path, fault: str) -> None:
    make(tmp_path, 9)
    FAULTS[fault][0](make(tmp_path, 10))
    check_room(tmp_path)
    FAULTS[fault][0](tmp_path / "checkpoint-9")
    check_room(tmp_path)


def test_a_manifest_of_a_later_version_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path, 3)
    content = json.loads((folder / "manifest.json").read_text())
    content["files"] = {name: entry | {"blake3": "0"} for name, entry in content["files"].items()}
    (folder / "manifest.json").write_text("\ufeff" + json.dumps(content | {"version": 7}))
    assert read_fault(folder) is None


def test_a_copy_under_another_step_is_passed_over(tmp_path: Path) -> None:
    """It would be taken for the newest for good, and rotation would count from it."""
    older = make(tmp_path, 9)
    shutil.copytree(older, tmp_path / "checkpoint-900")
    shutil.copytree(older, tmp_path / "checkpoint-9-backup")
    found, skipped = newest_sound(list_checkpoints(tmp_path), read_fault)
    assert found == older and skipped == [(tmp_path / "checkpoint-900", "its manifest.json is of step 9")]
    assert read_fault(tmp_path / "checkpoint-9-backup") is None  # resume=FOLDER takes any name


def test_a_checkpoint_moved_to_another_disk_resumes_and_rotates(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    moved = make(elsewhere, 5)
    (run / "checkpoint-5").symlink_to(moved)
    assert newest_sound(list_checkpoints(run), read_fault) == (run / "checkpoint-5", [])
    newest = make(run, 6)
    rotate(run, newest, 1)
    assert list_checkpoints(run) == [newest] and read_fault(moved) is None
    staged = make(run / "checkpoint.unfinished", 7)
    (run / "checkpoint-7").symlink_to(tmp_path / "gone")
    assert publish(staged, run) == run / "checkpoint-7" and read_fault(run / "checkpoint-7") is None


def test_a_protected_checkpoint_stays_and_is_named(tmp_path: Path, monkeypatch, caplog) -> None:
    first, second, third = (make(tmp_path, step) for step in (1, 2, 3))
    whole = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == first:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return whole(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    rotate(tmp_path, third, 1)
    assert list_checkpoints(tmp_path) == [first, third] and not second.exists()
    assert "checkpoint-1: cannot be removed: permission denied; it stays" in caplog.text


def test_a_flipped_bit_is_found_by_reading_alone(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    flip(folder)
    assert find_fault(folder) is None and read_fault(folder) is not None


def test_a_name_appears_at_once_and_takes_the_place_of_a_faulty_folder(tmp_path: Path) -> None:
    staging, faulty = tmp_path / "checkpoint.unfinished", tmp_path / "checkpoint-7"
    staged = make(staging, 7)
    faulty.mkdir()
    (faulty / "left over").write_text("")
    assert publish(staged, tmp_path) == faulty and read_fault(faulty) is None
    assert not staging.exists() and not (faulty / "left over").exists()


def test_a_kill_while_an_old_one_is_deleted_leaves_no_part_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text("w")
        return folder

    first, second = make(2), make(4)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rotate(tmp_path, second, 1)
    assert list_checkpoints(tmp_path) == [second] and not first.exists()
    make(2)  # by a run that went back
    rotate(tmp_path, second, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("limit", "left"),
    [(None, [3, 5, 6, 9]), (9, [3, 5, 6, 9]), (3, [3, 5, 6]), (2, [5, 6]), (1, [6])],
)
def test_rotation_never_takes_the_one_just_written(tmp_path: Path, limit: int | None, left: list[int]) -> None:
    """9 lies in a future the run has left: it was faulty, and the run went back to 5."""
    folders = {step: make(tmp_path, step, 8) for step in (9, 3, 5, 6)}
    (tmp_path / "checkpoint-best").mkdir()  # somebody's own
    rotate(tmp_path, folders[6], limit)
    assert [int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path)] == left
    assert (tmp_path / "checkpoint-best").exists()


def test_a_checkpoint_without_room_is_not_begun(tmp_path: Path, monkeypatch) -> None:
    check_room(tmp_path)
    make(tmp_path, 1, 100_000)
    check_room(tmp_path)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 150_000, 150_000))
    with pytest.raises(
        CheckpointError, match=r"takes 0.2 MB, the disk has 0.1 MB left|takes 0.2 MB, the disk has 0.2 MB left"
    ):
        check_room(tmp_path)


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> Path:
    """An uninterrupted run with three checkpoints."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert main([*world.recipe("lora", run, save_steps=2), world.prumerge_plus]) == 0
    return run


def tokens_of(run: Path) -> list[str]:
    return [str(run / "config.yaml"), f"output_dir={run}"]


def copy_interrupted(straight: Path, run: Path) -> Path:
    """A run as a crash after its last checkpoint leaves it."""
    shutil.copytree(straight, run)
    for file in [*run.glob("*.safetensors"), run / "finished.json"]:
        file.unlink()
    return run


def test_a_run_leaves_sealed_checkpoints_with_all_parts_of_lora(world, straight) -> None:
    folders = list_checkpoints(straight)
    assert [folder.name for folder in folders] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    parts = {"adapter_model.safetensors", "mm_projector.safetensors", "config.json", "base.json", "optimizer.pt"}
    for folder in folders:
        assert read_fault(folder) is None and parts <= set(list_files(folder))
        assert json.loads((folder / "config.json").read_text())["reduction"]["vision"]["name"] == "prumerge_plus"
        assert sorted(json.loads((folder / "manifest.json").read_text())["files"]) == list_files(folder)
    assert not (straight / "checkpoint.unfinished").exists()


def test_resume_passes_over_a_cut_shard_and_a_half_written_folder(world, straight, tmp_path, caplog) -> None:
    """Both at once; then the run goes on from the sound one, and ends as if nothing had happened."""
    run = copy_interrupted(straight, tmp_path / "run")
    optimizer = run / "checkpoint-6" / "optimizer.pt"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    (run / "checkpoint-4" / "manifest.json").unlink()
    (run / "checkpoint.unfinished" / "checkpoint-5").mkdir(parents=True)  # killed while it saved
    with caplog.at_level("INFO", logger="llava_prumerge"):
        assert main(tokens_of(run)) == 0
    told = [record.getMessage() for record in caplog.records]
    assert any("skipping" in line and "checkpoint-6: optimizer.pt has" in line for line in told)
    assert any("skipping" in line and "checkpoint-4: it has no manifest.json" in line for line in told)
    assert any("resuming from" in line and "checkpoint-2" in line for line in told)
    assert_same_result(run, straight)
    assert (
        all(read_fault(folder) is None for folder in list_checkpoints(run))
        and not (run / "checkpoint.unfinished").exists()
    )


def assert_same_result(run: Path, straight: Path) -> None:
    """Losses of all steps and final weights, bit by bit."""
    rows = [
        [json.loads(line)["loss"] for line in (r / "metrics.jsonl").read_text().splitlines()] for r in (run, straight)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 6
    for file in straight.glob("*.safetensors"):
        expected, found = load_file(file), load_file(run / file.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_what_was_sound(world, straight, tmp_path, capfd) -> None:
    """The kernel refuses files beyond a size, as it does on a full disk; the optimiser's is the largest there is."""
    run = copy_interrupted(straight, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(run / f"checkpoint-{step}")
    before = {name: (run / "checkpoint-2" / name).read_bytes() for name in list_files(run / "checkpoint-2")}
    largest = max(len(content) for content in before.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1000, hard))
    try:
        assert main(tokens_of(run)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "checkpoint-4 could not be written" in errors[0]
    assert [folder.name for folder in list_checkpoints(run)] == ["checkpoint-2"]
    assert not (run / "checkpoint.unfinished").exists() and not (run / "finished.json").exists()
    assert {name: (run / "checkpoint-2" / name).read_bytes() for name in before} == before
    assert main(tokens_of(run)) == 0
    assert_same_result(run, straight)


@pytest.mark.slow
def test_a_disk_that_is_really_full(world, straight, tmp_path, capfd) -> None:
    """A file system in memory with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (straight / "checkpoint-2").rglob("*") if path.is_file())
    options = f"size={int(size * 1.6) // 4096 * 4096}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        recipe = [*world.recipe("lora", tmp_path / "recipe", save_steps=2), world.prumerge_plus]
        assert main([*recipe, f"output_dir={disk / 'run'}"]) == 2
        assert "checkpoint-4 could not be written" in capfd.readouterr().err
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free // 2))
        for folder in list_checkpoints(disk / "run"):
            assert read_fault(folder) is None
        assert [folder.name for folder in list_checkpoints(disk / "run")] == ["checkpoint-2"]
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        assert main([*recipe, f"output_dir={disk / 'run'}"]) == 0
        assert_same_result(disk / "run", straight)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_weights_that_are_not_finite_are_not_saved(world, tmp_path, capsys, monkeypatch) -> None:
    from llava_prumerge.train import trainer as module

    run = tmp_path / "run"
    original, steps = module.LlavaTrainer._save_checkpoint, []

    def spoil(self, model, trial) -> None:
        steps.append(self.state.global_step)
        if len(steps) == 2:
            next(p for p in self.model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")
        original(self, model, trial)

    monkeypatch.setattr(module.LlavaTrainer, "_save_checkpoint", spoil)
    assert main([*world.recipe("projector", run, save_steps=2, save_total_limit=1), world.prumerge_plus]) == 1
    assert "holds values that are not finite" in capsys.readouterr().err
    found, skipped = find_resume_point(load_arguments(tokens_of(run)), read_fault)
    assert found == run / "checkpoint-2" and not skipped


def test_an_error_names_the_disks_reason(world, tmp_path, capsys, monkeypatch) -> None:
    """Once more from the side of the message: ENOSPC arrives in the one line."""
    from llava_prumerge.train import trainer as module

    def refuse(*args, **kwargs) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "seal", refuse)
    assert main([*world.recipe("projector", tmp_path / "run", save_steps=2), world.prumerge_plus]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list_checkpoints(tmp_path / "run")


def test_a_host_that_sees_another_folder_is_refused(world, tmp_path, capsys, monkeypatch) -> None:
    """Its shards would be in nobody's manifest. The folder is taken away where the other ranks would look for it."""
    from llava_prumerge.train import trainer as module

    run = tmp_path / "run"
    monkeypatch.setattr(module, "barrier", lambda: shutil.rmtree(run / "checkpoint.unfinished", ignore_errors=True))
    assert main([*world.recipe("projector", run, save_steps=2), world.prumerge_plus]) == 2
    assert "all hosts have to see one" in capsys.readouterr().err and not list_checkpoints(run)
