"""A run over bad samples: replaced, counted once, the same after a resumption, and ended by too many of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.train.quarantine import QuarantineLedger
from llava_prumerge.train.run import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def damaged(world, tmp_path: Path) -> str:
    """The world's captions with two lost images and an answer that holds its own end."""
    records = json.loads((world.folder / "captions.json").read_text())
    records[2]["image"] = records[7]["image"] = "lost.png"
    records[5]["conversations"][1]["value"] = "gone</s>"
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(records))
    return str(path)


def lines_of(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_a_run_goes_on_over_bad_samples_and_resumes_exactly(world, tmp_path, damaged, caplog) -> None:
    # Sixteen records, four per step: every bad sample is met in the first four steps, and again in the next epoch.
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    changes = {"data": damaged, "bad_sample_limit": 0.2, "max_steps": 8, "save_steps": 2}
    assert main(world.recipe("projector", straight, **changes)) == 0
    bad = lines_of(straight, "quarantine.jsonl")
    assert sorted(line["sample_id"] for line in bad) == ["sample-11", "sample-4", "sample-8"]
    assert {line["reason"].split(":")[0] for line in bad} == {"missing", "end of answer in text"}
    assert all(line["replacement"] not in (2, 5, 7) and 1 <= line["step"] <= 4 for line in bad)
    counts = [line["bad_samples"] for line in lines_of(straight, "metrics.jsonl")]
    assert counts == sorted(counts) and counts[-1] == 3, "each is counted once, in the step that met it"
    assert counts == [sum(line["step"] <= step for line in bad) for step in range(1, 9)]
    assert any("bad samples 3" in record.message for record in caplog.records)

    recipe = world.recipe("projector", broken, **changes)
    shutil.copytree(straight, broken)
    for file in ("mm_projector.safetensors", "finished.json"):
        (broken / file).unlink()
    for step in (4, 6, 8):
        shutil.rmtree(broken / f"checkpoint-{step}")
    (broken / "config.yaml").write_text((straight / "config.yaml").read_text().replace("straight", "broken"))
    assert main([*recipe, "workers=2"]) == 0
    assert lines_of(broken, "quarantine.jsonl") == bad
    for line, again in zip(lines_of(straight, "metrics.jsonl"), lines_of(broken, "metrics.jsonl"), strict=True):
        assert (line["loss"], line["bad_samples"]) == (again["loss"], again["bad_samples"])
    weights = [load_file(run / "mm_projector.safetensors") for run in (straight, broken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_too_many_end_the_run(world, tmp_path, damaged, capsys) -> None:
    run = tmp_path / "run"
    recipe = world.recipe("projector", run, data=damaged, bad_sample_limit=0.13)
    assert main(recipe) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "3 of 16 records, and bad_sample_limit=0.13 allows 2" in error[0]
    assert "quarantine.jsonl" in error[0] and len(lines_of(run, "quarantine.jsonl")) == 3
    assert not (run / "mm_projector.safetensors").exists()
    assert main([*recipe, "bad_sample_limit=0.2"]) == 0, "the limit may be raised, and the run goes on"
    assert lines_of(run, "metrics.jsonl")[-1]["bad_samples"] == 3


def test_by_default_a_small_file_may_have_none(world, tmp_path, damaged, capsys) -> None:
    assert main(world.recipe("projector", tmp_path / "run", data=damaged)) == 2
    assert "bad_sample_limit=0.001 allows 0" in capsys.readouterr().err
    allowed = [QuarantineLedger(*given).allowed for given in ((0.001, 665_298), (0.29, 100), (0.0, 9), (0.999, 1))]
    assert allowed == [665, 29, 0, 0]


@pytest.mark.slow
def test_two_ranks_agree_with_one_process(world, tmp_path, damaged) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"data": damaged, "bad_sample_limit": 0.2, "logging_steps": 2}
    assert main(world.recipe("projector", one, **changes)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "llava_prumerge.train.run"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, *world.recipe("projector", two, **changes)],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    keys = ("sample_id", "reason", "replacement")
    expected, found = (
        sorted(tuple(line[key] for key in keys) for line in lines_of(run, "quarantine.jsonl")) for run in (one, two)
    )
    assert len(found) == 3 and found == expected
    for line, other in zip(lines_of(one, "metrics.jsonl"), lines_of(two, "metrics.jsonl"), strict=True):
        assert other["bad_samples"] == line["bad_samples"] and other["loss"] == pytest.approx(line["loss"], rel=1e-4)
    few = [*world.recipe("projector", tmp_path / "few", data=damaged), "bad_sample_limit=0.1"]
    done = subprocess.run([*command, *few], cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "too many bad samples" in done.stderr
