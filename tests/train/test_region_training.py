"""The regression of patches onto words, in the project's own trainer: it learns, resumes, and leaves a projector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.train.run import main


@pytest.fixture(scope="module")
def records(world) -> Path:
    """The world's pictures with their colours as regions; one shows nothing."""
    found = json.loads((world.folder / "captions.json").read_text())
    for number, record in enumerate(found):
        colour = record["conversations"][1]["value"].split()[0]
        record["regions"] = [
            {"box": [0, 0, 1, 0.5], "text": f"picture shows {colour}"},
            {"box": [0.25, 0.5, 0.75, 1], "text": colour},
        ] * (number != 3)
    texts = [record for record in json.loads((world.folder / "records.json").read_text()) if "image" not in record]
    found = [*texts[:3], *found[:5], *texts[3:], *found[5:]]  # a mix for stage 2
    file = world.folder / "regions.json"
    file.write_text(json.dumps(found))
    return file


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def recipe(world, run: Path, records: Path, **changes: object) -> list[str]:
    values = {"stage": "projector", "data": str(records), "objective": "regions", "max_steps": 6} | changes
    return world.recipe(str(values.pop("stage")), run, **values)


@pytest.mark.slow
def test_it_learns_and_resumes_to_the_bit(world, records, tmp_path, capsys) -> None:
    more = {"max_steps": 40, "learning_rate": 1e-2, "save_steps": 20, "tower_cache": str(tmp_path / "cache")}
    words = recipe(world, tmp_path / "run", records, **more)
    assert main([*words, "--dry-run"]) == 0
    assert "records 16 in" in (plan := capsys.readouterr().out) and "carry loss (patches)" in plan
    assert main(words) == 0
    told = losses(tmp_path / "run")
    assert told[0] > 0.7 and told[-1] < 0.5 * told[0], "saying nothing has a loss of 0.75"
    straight = load_file(tmp_path / "run" / "mm_projector.safetensors")
    for file in [*(tmp_path / "run").glob("*.safetensors"), tmp_path / "run" / "finished.json"]:
        file.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-40")
    assert main(words) == 0
    again = load_file(tmp_path / "run" / "mm_projector.safetensors")
    assert (
        all(torch.equal(again[name], tensor) for name, tensor in straight.items()) and losses(tmp_path / "run") == told
    )
    stage_two = world.recipe("lora", tmp_path / "two", projector=str(tmp_path / "run"), max_steps=1, save_steps=0)
    assert main(stage_two) == 0


def test_accumulation_does_not_change_a_step(world, records, tmp_path) -> None:
    for size in (1, 4):
        assert main(recipe(world, tmp_path / str(size), records, per_device_batch=size, max_steps=2, save_steps=0)) == 0
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stage": "lora"},
            "objective=regions trains the projector on all patches: stage=projector, method=none, not stage=lora",
        ),
        (
            {"reduction": {"vision": {"name": "uniform", "budget": 4}}},
            "method=none, not stage=projector, method=uniform",
        ),
        ({"objective": "boxes"}, "objective='boxes': must be one of answers, regions"),
        ({"data": "{world}/captions.json"}, "no record that was looked at has a region with a text"),
        ({"data": "{world}/odd.json"}, "too many bad samples: 1 of 16 records"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(world, records, tmp_path, capsys, change, message) -> None:
    odd = json.loads(records.read_text())
    odd[3]["regions"][1]["box"] = [0, 0, 28, 28]
    (world.folder / "odd.json").write_text(json.dumps(odd))
    changes = {
        key: value.replace("{world}", str(world.folder)) if isinstance(value, str) else value
        for key, value in change.items()
    }
    assert main(recipe(world, tmp_path / "run", changes.pop("data", records), **changes)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    if "odd" in str(change):
        assert (
            "regions: the box of number 2 must be four fractions of the image, each from 0 to 1, not pixels"
            in errors[0]
        )
