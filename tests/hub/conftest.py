"""Finished runs on the pocket backbones, untrained: what a release starts from, in seconds."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from fake_hub import FakeHub, running

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = ROOT / "playground" / "pocket" / "backbones"
REDUCTION = {"vision": {"name": "prumerge_plus", "budget": 36}}
TRAINED_BY = [
    "/somewhere/llava_prumerge/llava_prumerge/train/run.py",
    "configs/train/pocket/finetune_lora.yaml",
    "seed=7",
]


def write_run_files(folder: Path, stage: str) -> None:
    """What training writes beside weights, by training's own code."""
    from llava_prumerge.train.arguments import load_arguments
    from llava_prumerge.train.provenance import write_provenance

    method = folder.parent / "method.yaml"
    method.write_text(yaml.safe_dump({"reduction": REDUCTION}))
    recipe = {"full": "finetune", "lora": "finetune_lora"}[stage]
    bases = [f"language_model={BACKBONES / 'lm'}", f"vision_tower={BACKBONES / 'clip'}", "data=data/stage2.json"]
    tokens = [str(ROOT / f"configs/train/pocket/{recipe}.yaml"), str(method), *bases, f"output_dir={folder}"]
    with patch.object(sys, "argv", TRAINED_BY):
        write_provenance(load_arguments(tokens), world_size=1, accumulation=1)
    (folder / "finished.json").write_text("{}")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"not for release")


@pytest.fixture(scope="session")
def original_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """full: a complete model; lora: adapters with merged/; plain: the same adapters without it."""
    from peft import LoraConfig, get_peft_model

    from llava_prumerge.model.adapters import Base, load_adapter, save_adapter, save_complete
    from llava_prumerge.train.stages import LORA_TARGETS

    folder = tmp_path_factory.mktemp("runs")
    base = Base(None, str(BACKBONES / "lm"), str(BACKBONES / "clip"), seed=3)
    model, processor = base.build(None, REDUCTION)
    save_complete(model, folder / "full", None, processor)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=LORA_TARGETS))
    trained = {
        name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name or "projector" in name
    }
    for name, parameter in trained.items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    save_adapter(adapted, folder / "plain", {name: p.detach() for name, p in trained.items()}, base, processor)
    shutil.copytree(folder / "plain", folder / "lora")
    whole, processor = load_adapter(folder / "lora")
    save_complete(whole, folder / "lora" / "merged", None, processor)
    for name in ("full", "lora", "plain"):
        write_run_files(folder / name, "full" if name == "full" else "lora")
    return folder


@pytest.fixture
def runs(original_runs: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original_runs, tmp_path / "runs"))


@pytest.fixture
def write_result() -> Callable[..., Path]:
    """Writes a result file as eval does, of a model folder; changes go in by key, dotted for inner ones."""
    from llava_prumerge.evaluation.answers import claim
    from llava_prumerge.model.fingerprint import fingerprint

    def write(
        folder: Path, model: Path, task: str = "pope", questions: int = 8910, value: float = 85.25, **changes: Any
    ) -> Path:
        generation = {
            "task": task,
            "model": fingerprint(str(model)),
            "reduction": REDUCTION,
            "images": "on",
            "dtype": "float32",
        }
        result: dict[str, Any] = {
            "task": task,
            "title": task.upper(),
            "row": {"model": model.name, "method": "prumerge_plus", "images": "on"},
            "value": value,
            "metric": {"pope": "mean_f1", "mme": "perception"}.get(task, "accuracy"),
            "interval_95": [value - 1, value + 1],
            "n": questions,
            "questions": questions,
            "kept": {"mean": 36.0, "of": 144},
            "reduction": REDUCTION,
            "model": str(model),
            "generation": generation,
            "command": [
                "python",
                str(ROOT / "llava_prumerge" / "evaluation" / "run.py"),
                "run",
                "--task",
                task,
                "--model",
                str(model),
            ],
            "revision": "0123456789abcdef0123456789abcdef01234567",
        }
        for key, change in changes.items():
            outer, _, inner = key.partition("__")
            result[outer] = {**result[outer], inner: change} if inner else change
        path = folder / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        claim(folder / "answers" / f"{task}.jsonl", generation, {})
        return path

    return write


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """An environment without anything of the real user's Hub account, and on the network."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return clean | quiet | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def hub() -> Any:
    """A running fake Hub."""
    with running() as fake:
        assert isinstance(fake, FakeHub)
        yield fake
