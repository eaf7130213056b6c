"""docs/training.md and docs/reliability.md: their commands are accepted, their tests exist, their examples are what is printed."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from train.launching import REPOSITORY, variables

from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.dry_run import describe_run
from llava_prumerge.train.run import main

TRAINING, RELIABILITY = (REPOSITORY / "docs" / f"{name}.md" for name in ("training", "reliability"))


def script_lines() -> list[str]:
    """Every line of training.md that starts a script, settings included."""
    blocks = re.findall(r"```\w*\n(.*?)```", TRAINING.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\w+=\S+ )*(bash|sbatch) scripts/", line)]


def test_the_document_shows_every_way_to_start() -> None:
    text = "\n".join(script_lines())
    for part in (
        "pretrain.sh",
        "finetune.sh",
        "finetune_lora.sh",
        "RECIPE=pocket",
        "NNODES=2",
        "HOSTFILE=",
        "sbatch",
        "--dry-run",
    ):
        assert part in text


@pytest.mark.parametrize("line", script_lines())
def test_every_line_is_accepted_by_its_script(world, tmp_path, line: str) -> None:
    """With the tiny world in the place of weights and data: paths exist, settings are known, values are right."""
    words = shlex.split(line)
    environment = dict(word.split("=", 1) for word in words if re.match(r"^[A-Z_]+=", word))
    if "HOSTFILE" in environment:
        environment["HOSTFILE"] = "configs/deepspeed/hostfile.example"  # which the document tells to copy
    script, settings = next((w, words[at + 1 :]) for at, w in enumerate(words) if w.startswith("scripts/"))
    stage = "projector" if script.endswith("pretrain.sh") else "full" if script.endswith("finetune.sh") else "lora"
    script = "scripts/finetune_lora.sh" if script.endswith(".sbatch") else script  # which it starts
    (recipe,) = world.recipe(stage, tmp_path / "run", per_device_batch=2, global_batch=16)
    paths = {"language_model", "vision_tower", "projector", "data", "images", "output_dir"}
    values = {key: value for key, value in yaml.safe_load(Path(recipe).read_text()).items() if key in paths}
    items = [f"{key}={value}" for key, value in values.items()]
    flags = [word for word in settings if word.startswith("--")] or ["--check"]
    if "--dry-run" in flags:
        flags = ["--check"]  # the plan itself is compared below
    named = [word for word in settings if "=" in word]
    whole = f"model={world.folder / 'lm'}"  # in the place of a name on the Hub
    named = [whole if word.startswith("model=") else word for word in named]
    command = ["bash", script, *named, *items, *flags]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=variables() | environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


def test_the_plan_in_the_document_is_the_one_that_is_printed(tmp_path, monkeypatch) -> None:
    block = next(b for b in re.findall(r"```console\n(.*?)```", TRAINING.read_text(), re.DOTALL) if "--dry-run" in b)
    shown = [line.rstrip() for line in block.splitlines()[1:] if line != "..."]
    configs = REPOSITORY / "configs"
    (tmp_path / "configs").symlink_to(configs)
    monkeypatch.chdir(tmp_path)
    plan = describe_run(load_arguments(["configs/train/finetune_lora.yaml", "configs/method/prumerge_plus.yaml"]), 1)
    assert plan.splitlines()[: len(shown)] == shown


def commands() -> list[str]:
    """The commands of reliability.md's tables."""
    return sorted(set(re.findall(r"`(pytest [^`]+)`", RELIABILITY.read_text())))


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_table_names_tests_that_exist(command: str) -> None:
    """With the marker it says, and matched by its expression."""
    words = shlex.split(command)
    path = REPOSITORY / next(word for word in words if word.startswith("tests/"))
    wanted = (words[words.index("-k") + 1] if "-k" in words else "").split(" or ")
    marker = words[words.index("-m") + 1] if "-m" in words else None
    found = []
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.FunctionDef)
            and node.name.startswith("test_")
            and any(word in node.name for word in wanted)
        ):
            marks = {m for d in node.decorator_list for m in re.findall(r"mark\.(slow|zero)", ast.unparse(d))}
            found.append(marks == ({marker} if marker else set()))
    assert any(found), f"{command}: no such test, or not with this marker"


def test_keys_that_the_document_explains_exist(capsys) -> None:
    assert main(["--help"]) == 0
    known = capsys.readouterr().out
    for key in ("max_skipped_steps", "save_total_limit", "quantization", "attention", "resume", "deepspeed"):
        assert f"  {key} " in known and f"{key}" in TRAINING.read_text()
