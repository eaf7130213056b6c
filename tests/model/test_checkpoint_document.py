"""The commands of docs/checkpoints.md run, in their order, on tiny checkpoints under the names they use."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip_reference as reference
import published_layouts as layouts
import published_video_llava as video_llava
import pytest
import torch
from published_layouts import Published

from llava_prumerge.model.adapters import BASE_FILE
from llava_prumerge.model.checkpoints.__main__ import parse
from llava_prumerge.model.checkpoints.convert import convert
from llava_prumerge.model.loading import load_model

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
COMMAND = "python -m llava_prumerge.model.checkpoints convert "
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def world(
    sources: Path,
    ours: Path,
    model: Published,
    tokenizer_model: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A working folder with everything the document takes for granted."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, real in {
        "original": "llava-v1.5-7b",
        "clip": "clip-vit-large-patch14-336",
        "vicuna": "vicuna-7b-v1.5",
        "lora": "llava-v1.5-7b-lora",
    }.items():
        shutil.copytree(sources / name, folder / real)
    release = folder / "llava-prumerge-vicuna-7b-v1.5-lora"
    shutil.copytree(sources / "lora", release)
    for missing in ("config.json", "non_lora_trainables.bin"):
        (release / missing).unlink()
    stage1 = folder / "llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"
    stage1.mkdir()
    projector = {f"model.mm_projector.{key}": value for key, value in model.projector.items()}
    torch.save(projector, stage1 / "mm_projector.bin")
    layouts.write_json(stage1 / "config.json", layouts.original_config())
    layouts.write_llava_hf(folder / "llava-1.5-7b-hf", model, ours, layouts.OLDER)
    video_llava.write(folder / "Video-LLaVA-7B", model, tokenizer_model)
    video_llava.write_tower(folder / "LanguageBind_Image", None)
    (folder / "open_clip-vit").mkdir()
    settings = reference.SETTINGS["small"]
    layouts.write_json(folder / "open_clip-vit" / "open_clip_config.json", {"model_cfg": settings})
    torch.save(reference.weights("small"), folder / "open_clip-vit" / "open_clip_pytorch_model.bin")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_runs_and_gives_what_the_text_says(world: Path) -> None:
    assert len(COMMANDS) >= 12 and all(line.startswith(COMMAND) for line in COMMANDS)
    loaded = []
    for line in COMMANDS:
        words = shlex.split(line)
        said = convert(parse(words[3:]))
        if "--dry-run" in words:
            assert f"{len(said)} tensors at {words[4].rpartition('-')[2].upper()}" in DOCUMENT
            continue
        target = Path(words[5])
        ours = "--to" not in words and (target / "tokenizer.json").exists()  # no projector alone, no tower
        if ours:
            assert load_model(target, device="cpu")[0].lm_head.weight.shape == (layouts.ROWS, 64), line
            loaded.append(target.name)
        assert any(target.iterdir()), line
    assert len(loaded) == 7 and (Path("checkpoints") / loaded[2] / BASE_FILE).exists()
    made = {file.name: file for file in (world / "checkpoints").iterdir()}
    reduction = {
        name: json.loads((made[name] / "config.json").read_text()).get("reduction")
        for name in ("llava-7b", "llava-7b-prumerge_plus", "prumerge-7b-lora", "llava-7b-from-hf")
    }
    plus = {"vision": {"name": "prumerge_plus"}}
    assert list(reduction.values()) == [None, plus, {"vision": {"name": "prumerge"}}, plus]
    taken = json.loads((made["prumerge-7b-lora"] / "conversion.json").read_text())["taken"]
    assert set(taken) == {"config.json", "non_lora_trainables.bin", "vision tower"}
    assert {"mm_projector.safetensors", "conversion.json"} == {f.name for f in made["projector-7b"].iterdir()}
    assert not [name for name in made if name.startswith(".")]


THRICE = """
import os, runpy, signal, sys
from llava_prumerge.model import tensor_files

def run(*words):
    sys.argv[1:] = words
    try:
        runpy.run_module("llava_prumerge.model.checkpoints", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(end.code)

words = sys.argv[1:]
run(*words)
run(*words)
tensor_files.write_tensors = lambda file, *_: (file.write_bytes(b"begun"), os.kill(os.getpid(), signal.SIGTERM))
words[2] += "-2"
run(*words)
"""


def test_the_command_line_itself(world: Path) -> None:
    """As a user types it: a line for what was made; one for why not; and nothing is left when it is terminated."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", THRICE, *shlex.split(COMMANDS[0])[3:]]
    before = set((world / "checkpoints").iterdir())
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    target = "checkpoints/llava-7b"
    assert done.stdout.splitlines() == [
        f"{target}: 80 tensors from checkpoints/llava-v1.5-7b, vision tower from checkpoints/clip-vit-large-patch14-336",
        "0",
        "2",
        "error: terminated",
    ], done.stderr
    assert f"error: {target}: it exists already; name another folder, or remove it first" in done.stderr.splitlines()
    assert set((world / "checkpoints").iterdir()) - before == {world / target}
