"""The whole path on the committed backbones, a few steps and questions of each: data, stage 1, LoRA, benchmarks, tables.

What `make reproduce` does at length, through the same commands.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from playground.pocket import reproduce

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = ROOT / "playground" / "pocket" / "backbones"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pocket world."""
    from playground.pocket import benchmarks, records

    out = tmp_path_factory.mktemp("pocket")
    records.build(out, stage1=48, stage2=48, workers=1)
    benchmarks.build(out, scale=0.1)
    return out


def train(recipe: str, method: str, output: Path, *settings: str) -> Path:
    from llava_prumerge.train import run

    common = (
        "max_steps=2",
        "global_batch=8",
        "per_device_batch=4",
        "save_steps=2",
        "logging_steps=1",
        "report_to=[]",
        f"output_dir={output}",
    )
    tokens = [f"configs/train/pocket/{recipe}.yaml", f"configs/method/{method}.yaml", *common, *settings]
    assert run.main(tokens) == 0
    return output


def test_the_thin_path_from_records_to_tables(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava_prumerge.evaluation import run as evaluation
    from llava_prumerge.evaluation import tables

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    images = f"images={data / 'images'}"
    stage1 = train("pretrain", "none", tmp_path / "stage1", f"data={data / 'stage1.json'}", images)
    projector = f"projector={stage1 / 'mm_projector.safetensors'}"
    budget = "reduction.vision.budget=36"  # on few images the released stride may keep everything, see docs/log.md
    stage2 = train(
        "finetune_lora", "prumerge_plus", tmp_path / "lora", f"data={data / 'stage2.json'}", images, projector, budget
    )
    logged = [json.loads(line) for line in (stage2 / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("kept_mean") == 36 for row in logged), "PruMerge+ did not act in training"
    capsys.readouterr()
    command = ["run", "--task", "pope,mmbench,sqa", "--model", str(stage2 / "merged"), "--data", str(data / "eval")]
    assert evaluation.main([*command, "--out", str(tmp_path / "results"), "limit=12", "batch_size=6"]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*/*.json")}
    assert {"pope", "mmbench", "sqa"} <= set(results)
    assert results["pope"]["kept"]["mean"] == 36, "PruMerge+ did not act in evaluation"
    assert tables.main([str(tmp_path / "results"), "--out", str(tmp_path / "tables")]) in (0, None)
    assert "PruMerge+" in (tmp_path / "tables" / "table1.md").read_text()


def test_each_step_of_reproduce_names_what_exists() -> None:
    plan = reproduce.steps()
    names = [step.name for step in plan]
    assert len(set(names)) == len(plan)
    assert all(names.index(name) < number for number, step in enumerate(plan) for name in step.after)
    for step in plan:
        for word in step.command:
            if word.startswith("scripts/") or word.endswith(".py"):
                assert (ROOT / word).is_file(), word
            if word.startswith("method="):
                assert (ROOT / "configs" / "method" / f"{word.removeprefix('method=')}.yaml").is_file(), word
        recipe = step.environment.get("METHOD")
        if recipe:
            assert yaml.safe_load((ROOT / "configs" / "method" / f"{recipe}.yaml").read_text()) is not None


def test_settings_of_a_method_reach_its_training_and_its_evaluation() -> None:
    commands = {step.name: step.command for step in reproduce.steps()}
    assert {"reduction.vision.rows=5", "reduction.vision.columns=6"} <= set(
        commands["evaluate downsample training-free"]
    )
    for name in ("finetune_lora prumerge_plus", "evaluate prumerge_plus training-free"):
        assert {"reduction.vision.budget=72", "reduction.vision.share=0.4"} <= set(commands[name])
