"""What is checked before torch is imported: inputs that exist, a free output folder, scripts that say what they need."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from llava_prumerge.train.arguments import RecipeError, TrainArguments, load_arguments
from llava_prumerge.train.preflight import (
    advice,
    check_inputs,
    check_output_dir,
    check_ranks,
    different_settings,
    find_resume_point,
    is_finished,
)
from llava_prumerge.train.provenance import write_provenance

REPOSITORY = Path(__file__).resolve().parents[2]


def make_arguments(tmp_path: Path, *tokens: str) -> TrainArguments:
    return load_arguments([f"output_dir={tmp_path / 'run'}", *tokens])


def test_missing_inputs_are_listed_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[]")
    arguments = make_arguments(
        tmp_path, "stage=lora", f"data={tmp_path / 'data.json'}", "language_model=nowhere/lm", "images=nowhere"
    )
    with pytest.raises(RecipeError) as caught:
        check_inputs(arguments)
    message = str(caught.value)
    assert (
        "\n" not in message
        and "language_model=nowhere/lm (missing)" in message
        and "projector=None (missing)" in message
    )
    assert f"data={tmp_path / 'data.json'}," in message


def test_a_fresh_projector_needs_no_file(tmp_path: Path) -> None:
    for name in ("lm", "clip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "data.json").write_text("[]")
    inputs = [
        f"language_model={tmp_path / 'lm'}",
        f"vision_tower={tmp_path / 'clip'}",
        f"data={tmp_path / 'data.json'}",
    ]
    check_inputs(make_arguments(tmp_path, *inputs, f"images={tmp_path}"))
    (tmp_path / "clip" / "config.json").unlink()
    with pytest.raises(RecipeError, match="vision_tower=.*has no config.json"):
        check_inputs(make_arguments(tmp_path, *inputs, f"images={tmp_path}"))
    with pytest.raises(RecipeError, match="images=.*must be a folder"):
        check_inputs(make_arguments(tmp_path, *inputs, f"images={tmp_path / 'data.json'}"))


def test_an_output_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    first = make_arguments(tmp_path, "learning_rate=1e-3")
    write_provenance(first, world_size=1, accumulation=8)
    check_output_dir(first)
    check_output_dir(make_arguments(tmp_path, "learning_rate=1e-3", "logging_steps=7", "report_to=none"))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RecipeError, match="another run .learning_rate: 0.001 -> 0.002"):
        check_output_dir(make_arguments(tmp_path, "learning_rate=2e-3"))
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_folder_with_other_peoples_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    arguments = make_arguments(tmp_path)
    check_output_dir(arguments)
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match="holds files but no config.yaml"):
        check_output_dir(arguments)


def make_checkpoint(run: Path, step: int, world_size: int = 1) -> Path:
    """A checkpoint's folder with one shard, sealed."""
    from llava_prumerge.train.checkpoints import digest_files, list_files, seal

    folder = run / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / f"global_step{step}" / "shard.pt").write_bytes(bytes(range(256)) * 9)
    seal(folder, digest_files(folder, list_files(folder)), world_size)
    return folder


def test_resume_points(tmp_path: Path) -> None:
    arguments, run = make_arguments(tmp_path), tmp_path / "run"
    write_provenance(arguments, world_size=1, accumulation=8)
    assert find_resume_point(arguments) == (None, []) and not is_finished(arguments)
    folders = {step: make_checkpoint(run, step) for step in (5, 100, 20)}
    (run / "checkpoint-300").mkdir()
    found, skipped = find_resume_point(arguments)
    assert found == folders[100] and [path.name for path, _ in skipped] == ["checkpoint-300"]
    assert "no manifest.json" in skipped[0][1]
    with pytest.raises(RecipeError, match="holds checkpoints"):
        check_output_dir(make_arguments(tmp_path, "resume=none"))
    assert find_resume_point(make_arguments(tmp_path, f"resume={folders[5]}"))[0] == folders[5]
    for folder, fault in (("nowhere", "no such folder"), (run / "checkpoint-300", "no manifest.json")):
        with pytest.raises(RecipeError, match=fault):
            find_resume_point(make_arguments(tmp_path, f"resume={folder}"))


def test_deepspeeds_checkpoints_belong_to_a_number_of_ranks(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5, world_size=2)
    sharded = make_arguments(tmp_path, f"deepspeed={REPOSITORY / 'configs' / 'deepspeed' / 'zero2.json'}")
    check_ranks(folder, sharded, 2)
    check_ranks(folder, make_arguments(tmp_path), 4)  # plain PyTorch's are whole
    with pytest.raises(RecipeError, match="written by 2 ranks .* this start has 4"):
        check_ranks(folder, sharded, 4)


def test_provenance_is_complete_and_appends(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path)
    write_provenance(arguments, world_size=1, accumulation=8)
    write_provenance(arguments, world_size=2, accumulation=4)
    history = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [entry["world_size"] for entry in history] == [1, 2]
    assert history[0]["packages"]["torch"] and history[0]["code"].keys() == {"revision", "dirty"}
    assert different_settings({**vars(arguments), "seed": 1}, arguments) == ["seed: 1 -> 42"]


def test_the_script_says_what_it_needs_at_once() -> None:
    environment = {**os.environ, "GPUS": "0", "RECIPE": "finetune_lora", "METHOD": "prumerge_plus"}
    command = ["bash", "scripts/finetune_lora.sh", "language_model=nowhere/vicuna"]
    started = time.perf_counter()
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and time.perf_counter() - started < 10
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "language_model=nowhere/vicuna (missing)" in result.stderr and "RECIPE=pocket" in result.stderr
    assert advice(["playground/pocket/data/stage1.json"]).startswith("python playground/pocket/build.py")
    assert "data.prepare download" in advice(["playground/data/llava_v1_5_mix665k.json", "playground/data"])


def test_from_another_folder_it_says_where_the_files_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = advice(["playground/pocket/data/stage1.json", "playground/pocket/backbones/lm"])
    assert told.startswith(f"paths are seen from {tmp_path}: start it in {REPOSITORY}")
    assert advice(["playground/pocket/data/stage1.json"]).startswith("python playground/pocket/build.py")
