"""A run goes on with what it began with: each change is named and refused, and one key goes on all the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from llava_prumerge.train.arguments import RecipeError, load_arguments
from llava_prumerge.train.checkpoints import list_checkpoints
from llava_prumerge.train.origin import changes_since, check_origin, describe_origin, read_origin
from llava_prumerge.train.run import main


@pytest.fixture(scope="module")
def begun(world, tmp_path_factory) -> Path:
    """A world of its own with a run in it that was killed behind checkpoint-4 of six steps."""
    root = tmp_path_factory.mktemp("origin") / "world"
    world.projector()
    shutil.copytree(world.folder, root)
    recipe = moved(
        world,
        root,
        [*world.recipe("lora", root.parent / "run", save_steps=2, group_by_modality_length=False, lora_dropout=0.0)],
    )
    assert main(recipe) == 0
    run = root / "run"
    for file in [*run.glob("*.safetensors"), run / "finished.json"]:
        file.unlink()
    shutil.rmtree(run / "checkpoint-6")
    return root


def moved(world, root: Path, recipe: list[str]) -> list[str]:
    """The same recipe about a copy of the world."""
    text = Path(recipe[0]).read_text().replace(str(world.folder), str(root))
    values = yaml.safe_load(text) | {
        "output_dir": str(root / "run"),
        "reduction": {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(values))
    return [str(root / "recipe.yaml")]


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    """The same, to be changed; everything in it names its own folder."""
    root = tmp_path / "world"
    shutil.copytree(begun, root)
    for file in (root / "recipe.yaml", root / "run" / "config.yaml"):
        file.write_text(file.read_text().replace(str(begun), str(root)))
    return root


def change_records(root: Path, change: Any) -> None:
    file = root / "records.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def change_answer(records: list[dict]) -> list[dict]:
    records[5]["conversations"][1]["value"] = "green"
    return records


def change_image(root: Path) -> None:
    shutil.copy(root / "images" / "1.png", root / "images" / "2.png")


def change_weights(file: Path) -> None:
    weights = load_file(file)
    weights[sorted(weights)[0]].view(-1)[0] += 1
    save_file(weights, file, {"format": "pt"})


CHANGES: dict[str, tuple[Any, list[str], str]] = {
    "half of the records": (lambda r: change_records(r, lambda all: all[::2]), ["records", "images"], r"records changed since checkpoint-4: 24 -> 12; images changed since checkpoint-4: 16 -> 8; take back"),
    "an answer": (lambda r: change_records(r, change_answer), ["records"], r"records changed since checkpoint-4: still 24, with other content; take back"),
    "an image": (change_image, ["images"], r"images changed since checkpoint-4: still 16, with other content"),
    "an image gone": (lambda r: (r / "images" / "2.png").unlink(), ["images"], r"images changed since checkpoint-4"),
    "the language model": (lambda r: change_weights(r / "lm" / "model.safetensors"), ["base"], r"base changed since checkpoint-4: other weights or files in language_model"),
    "the projector": (lambda r: change_weights(r / "mm_projector.safetensors"), ["base"], r"base changed since checkpoint-4: other weights or files in projector"),
    "a seed": ("seed=7", ["recipe"], r"holds another run \(seed: 42 -> 7\)"),
    "a rate": ("learning_rate=2e-3", ["recipe"], r"holds another run \(learning_rate: 0.001 -> 0.002\)"),
    "the method": ("reduction.vision.iqr_factor=0.3", ["method"], r"holds another run \(reduction: .*0.2.* -> .*0.3"),
}  # fmt: skip


def change_it(root: Path, case: str) -> list[str]:
    """Make a change. -> the command's words"""
    change = CHANGES[case][0]
    tokens = [str(root / "recipe.yaml"), "bad_sample_limit=0.5"]
    if isinstance(change, str):
        return [*tokens, change]
    change(root)
    return tokens


@pytest.mark.parametrize("case", CHANGES)
def test_each_change_is_named_and_refused(copy: Path, capsys, case: str) -> None:
    _, aspects, message = CHANGES[case]
    tokens = change_it(copy, case)
    files = {file: file.read_bytes() for file in (copy / "run").rglob("*") if file.is_file()}
    assert main(tokens) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Traceback" not in told
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(told)
    assert f"accept_changes={','.join(aspects)}" in told
    others = {"recipe", "method", "records", "images", "base"} - set(aspects)
    assert main([*tokens, f"accept_changes={','.join(sorted(others))}"]) == 2
    assert files == {file: file.read_bytes() for file in (copy / "run").rglob("*") if file.is_file()}


@pytest.mark.parametrize("case", ["half of the records", "the language model", "the method"])
def test_a_change_that_is_accepted_is_the_runs_own_from_then_on(copy: Path, caplog, case: str) -> None:
    tokens, run = change_it(copy, case), copy / "run"
    assert main([*tokens, f"accept_changes={','.join(CHANGES[case][1])}"]) == 0
    assert "accepted: " in caplog.text and "resuming from" in caplog.text
    assert json.loads((run / "environment.json").read_text())[-1]["accepted"]
    assert main(tokens) == 0


def test_a_checkpoint_named_by_itself_is_bound_as_well(copy: Path, tmp_path: Path, capsys) -> None:
    """Into a folder where no copy of the recipe says anything."""
    checkpoint = list_checkpoints(copy / "run")[-1]
    tokens = [str(copy / "recipe.yaml"), f"output_dir={tmp_path / 'other'}", f"resume={checkpoint}"]
    for change, message in (
        ("seed=7", "recipe changed since checkpoint-4: seed: 42 -> 7;"),
        ("reduction.vision.iqr_factor=0.3", "method changed since checkpoint-4: vision.iqr_factor: 0.2 -> 0.3;"),
        (
            "reduction=null",
            "method changed since checkpoint-4: vision.iqr_factor: 0.2 -> None; vision.name: prumerge_plus -> None;",
        ),
    ):
        assert main([*tokens, change]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "other").exists(), "nothing came of it"
    assert main(tokens) == 0 and (tmp_path / "other" / "finished.json").exists()


def test_a_run_that_has_ended_says_when_its_records_have_changed(copy: Path, capsys) -> None:
    assert main([str(copy / "recipe.yaml")]) == 0
    assert main([str(copy / "recipe.yaml")]) == 0 and "has ended; nothing to do" in capsys.readouterr().out
    change_records(copy, change_answer)
    assert main([str(copy / "recipe.yaml")]) == 2
    assert "records changed since checkpoint-6: still 24, with other content" in capsys.readouterr().err


def test_what_lies_elsewhere_with_the_same_content_goes_on(copy: Path, capsys) -> None:
    for name in ("records.json", "images", "lm"):
        (copy / name).rename(copy / f"moved-{name}")
    tokens = [str(copy / "recipe.yaml"), f"data={copy / 'moved-records.json'}", f"images={copy / 'moved-images'}"]
    assert main([*tokens, f"language_model={copy / 'moved-lm'}"]) == 0, capsys.readouterr().err


def test_a_smaller_batch_per_device_continues(copy: Path, begun: Path, tmp_path: Path) -> None:
    """After an out-of-memory: the same samples a step, the same losses but for the order of sums."""
    straight = tmp_path / "straight"
    shutil.copytree(copy / "run", straight)
    assert main([str(copy / "recipe.yaml"), f"output_dir={straight}"]) == 0
    assert main([str(copy / "recipe.yaml"), "per_device_batch=1"]) == 0
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (straight, copy / "run")
    ]
    assert len(losses[0]) == 6 and losses[0][:4] == losses[1][:4]
    assert losses[1][4:] == pytest.approx(losses[0][4:], abs=1e-4)
    before, after = (
        json.loads((run / "environment.json").read_text())[-1]["accumulation_steps"] for run in (straight, copy / "run")
    )
    assert (before, after) == (2, 4)


def test_a_checkpoint_of_an_earlier_version_is_taken_as_it_is(copy: Path, caplog) -> None:
    """It says nothing of what it was made from."""
    run = copy / "run"
    checkpoint = list_checkpoints(run)[-1]
    for folder in (run, checkpoint):
        (folder / "made_from.json").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"]["made_from.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(copy / "recipe.yaml")]) == 0
    assert f"{checkpoint} does not say what it was made from" in caplog.text
    assert read_origin(run) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"version": 9}', b'{"version": 1, "recipe": 3}'])
def test_an_origin_that_cannot_be_read_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "made_from.json").write_bytes(content)
    assert read_origin(tmp_path) is None


def test_changes_in_words(copy: Path) -> None:
    arguments = load_arguments([str(copy / "recipe.yaml")])
    now = describe_origin(arguments)
    assert changes_since(now, now, "checkpoint-9") == {} and json.loads(json.dumps(now)) == now
    before = json.loads(json.dumps(now))
    before["records"] |= {"sha256": "0", "count": 48}
    before["base"]["vision_tower"] = "2:0"
    before["recipe"]["a_setting_of_an_earlier_version"] = 3
    assert changes_since(before, now, "checkpoint-9") == {
        "records": "records changed since checkpoint-9: 48 -> 24",
        "base": "base changed since checkpoint-9: other weights or files in vision_tower",
        "recipe": "recipe changed since checkpoint-9: a_setting_of_an_earlier_version: 3 -> None",
    }
    with pytest.raises(RecipeError, match=r"^records changed .*; base changed .*accept_changes=recipe,records,base$"):
        check_origin(before, now, "checkpoint-9", ["recipe"])
    assert len(check_origin(before, now, "checkpoint-9", ["recipe", "records", "base"])) == 3


def test_a_setting_that_is_newer_than_the_run_had_its_default(copy: Path, capsys) -> None:
    """Whatever it is called; a value of its own is a change, and so is a setting that is gone."""
    arguments = load_arguments([str(copy / "recipe.yaml")])
    now = describe_origin(arguments)
    newer = ("frames", "length_pool", "trusted", "seed", "lora_alpha")
    before = json.loads(json.dumps(now))
    before["recipe"] = {key: value for key, value in now["recipe"].items() if key not in newer}
    before["recipe"]["logging_steps"] = 7  # an earlier version may have stored what decides nothing
    assert changes_since(before, now, "checkpoint-4") == {
        "recipe": "recipe changed since checkpoint-4: lora_alpha: 256 -> 8"
    }
    run = copy / "run"
    for file in (run / "made_from.json", run / "checkpoint-4" / "made_from.json"):
        origin = json.loads(file.read_text())
        for key in ("frames", "length_pool"):
            del origin["recipe"][key]
        file.write_text(json.dumps(origin))
    manifest = json.loads((run / "checkpoint-4" / "manifest.json").read_text())
    content = (run / "checkpoint-4" / "made_from.json").read_bytes()
    manifest["files"]["made_from.json"] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (run / "checkpoint-4" / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(copy / "recipe.yaml"), "frames=9"]) == 2
    assert "frames: 8 -> 9" in capsys.readouterr().err
    assert main([str(copy / "recipe.yaml"), "save_steps=0"]) == 0


def test_a_wrong_name_of_a_change_is_refused(copy: Path) -> None:
    with pytest.raises(RecipeError, match="accept_changes=data: must be any of recipe, method, records, images, base"):
        load_arguments([str(copy / "recipe.yaml"), "accept_changes=data,base"])
