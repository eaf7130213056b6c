"""Releases: what is written is what was trained, and it loads and answers in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from llava_prumerge.evaluation.answers import header_path
from llava_prumerge.hub.__main__ import main
from llava_prumerge.hub.check import ask, check_release, drawn_image, load
from llava_prumerge.hub.source import ReleaseError, find_source
from llava_prumerge.model.loading import load_model

REDUCTION = {"vision": {"name": "prumerge_plus", "budget": 36}}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check in this process: the same loading and asking, without the seconds that a fresh one takes to start."""

    def check(source: object, folder: Path, image: Path | None, question: str, plugins: Sequence[str]) -> dict:
        return ask(*load(folder), drawn_image(), question)

    monkeypatch.setattr("llava_prumerge.hub.__main__.check_release", check)


def metadata(folder: Path) -> dict:
    """The YAML block of a release's card."""
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def dry_run(run: Path, out: Path, *options: str) -> int:
    return main([str(run), "me/pocket", "--license", "apache-2.0", "--out", str(out), "--dry-run", *options])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name, options", [("full", []), ("lora", ["--merge"]), ("plain", ["--merge"])])
def test_a_release_is_the_trained_model(
    name: str,
    options: list[str],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write_result: Callable,
) -> None:
    model = runs / name / "merged" if name == "lora" else runs / name
    write_result(tmp_path / "results", model)
    write_result(tmp_path / "results", model, "textvqa", questions=12, value=41.5)
    out = tmp_path / "release"
    assert dry_run(runs / name, out, "--results", str(tmp_path / "results"), *options) == 0
    printed = capsys.readouterr().out
    assert "loaded back as PruMergeLlavaForConditionalGeneration (float32); 36 of 144 visual tokens" in printed
    assert "was not uploaded" in printed
    trained, _ = load_model(runs / name)
    released, _ = load_model(out)
    states = trained.state_dict(), released.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert {path.name for path in out.iterdir()} == {
        *(
            "README.md",
            "chat_template.jinja",
            "chat_template.json",
            "config.json",
            "generation_config.json",
            "method.yaml",
            "model.safetensors",
        ),
        *(
            "preprocessor_config.json",
            "processor_config.json",
            "release.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
    }
    assert yaml.safe_load((out / "method.yaml").read_text()) == REDUCTION
    assert json.loads((out / "config.json").read_text())["reduction"] == REDUCTION
    card = metadata(out)
    assert (
        card["license"] == "apache-2.0" and "prumerge_plus" in card["tags"] and card["library_name"] == "llava_prumerge"
    )
    official, partial = card["model-index"][0]["results"]
    assert official["dataset"] | {"args": None} == {
        "type": "pope",
        "name": "POPE (test)",
        "split": "test",
        "args": None,
    }
    assert official["metrics"] == [{"type": "f1", "value": 85.25, "name": "mean_f1"}]
    assert partial["dataset"]["name"] == "12 questions in TextVQA's format (not the official set)"
    text = (out / "README.md").read_text()
    assert "python -m llava_prumerge.train.run configs/train/pocket/finetune_lora.yaml seed=7" in text
    assert "python -m llava_prumerge.evaluation.run run --task pope" in text and "84.2 to 86.2" in text


@pytest.mark.usefixtures("here")
def test_copied_weights_are_the_evaluated_bytes_and_a_second_call_leaves_them(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    assert dry_run(runs / "full", out) == 0
    weights = out / "model.safetensors"
    assert weights.read_bytes() == (runs / "full" / "model.safetensors").read_bytes()
    stamp = weights.stat().st_mtime_ns
    assert dry_run(runs / "full", out) == 0
    assert weights.stat().st_mtime_ns == stamp
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")  # damaged since: written again
    assert dry_run(runs / "full", out) == 0
    assert weights.read_bytes() == (runs / "full" / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("here")
def test_a_run_of_an_earlier_version_is_released_with_todays_files(runs: Path, tmp_path: Path) -> None:
    """Such runs have transformers 5's own files, no chat template, and the folders that training read in their settings."""
    run = runs / "full"
    _, processor = load_model(run, device="cpu")
    for name in ("preprocessor_config.json", "chat_template.jinja", "chat_template.json"):
        (run / name).unlink()
    processor.chat_template = processor.tokenizer.chat_template = None
    processor.save_pretrained(run)
    notes = {"is_local": True, "local_files_only": False, "_name_or_path": str(tmp_path)}
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((run / name).read_text())
        values.get("text_config", {}).update(notes)
        (run / name).write_text(json.dumps(values | notes))
    assert dry_run(run, tmp_path / "release") == 0
    settings = json.loads((tmp_path / "release" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["padding_side"] == "left"
    assert "ASSISTANT:" in (tmp_path / "release" / "chat_template.jinja").read_text()
    for file in (tmp_path / "release").glob("*.json"):
        assert not any(word in file.read_text() for word in (*notes, str(tmp_path))), file


@pytest.mark.usefixtures("here")
def test_weights_can_be_stored_in_another_dtype(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(runs / "lora", tmp_path / "release", "--merge", "--dtype", "bfloat16") == 0
    assert "loaded back as PruMergeLlavaForConditionalGeneration (bfloat16)" in capsys.readouterr().out
    released, merged = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "release", runs / "lora" / "merged")
    )
    assert all(torch.equal(released[name], merged[name].bfloat16()) for name in merged)


def test_adapters_are_released_with_bases_that_others_can_get(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "release"
    assert dry_run(runs / "lora", out) == 2
    assert "--base language_model=NAMESPACE/NAME --base vision_tower=NAMESPACE/NAME" in capsys.readouterr().err
    bases = ["--base", "language_model=me/pocket-lm", "--base", "vision_tower=me/pocket-clip"]
    assert dry_run(runs / "lora", out, *bases) == 0
    assert "36 of 144 visual tokens" in capsys.readouterr().out
    base = json.loads((out / "base.json").read_text())
    assert all(base[key].pop("weights").startswith("2:") for key in ("language_model", "vision_tower"))
    assert base == {
        "model": None,
        "language_model": {"hub": "me/pocket-lm"},
        "vision_tower": {"hub": "me/pocket-clip"},
        "seed": 3,
    }
    card = metadata(out)
    assert card["base_model"] == ["me/pocket-lm", "me/pocket-clip"] and card["base_model_relation"] == "adapter"
    for name in ("adapter_model.safetensors", "mm_projector.safetensors"):
        assert (out / name).read_bytes() == (runs / "lora" / name).read_bytes()
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.json"))
    assert "snapshot_download" in (out / "README.md").read_text()


def test_a_release_that_does_not_work_is_noticed(runs: Path) -> None:
    folder = runs / "full"
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][5] = torch.finfo(torch.float32).max  # finite itself
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match="does not work when it is loaded back: .*the logits are not finite"):
        check_release(find_source(folder, merge=False), folder, None, "What is this?")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match="lacks weights: lm_head.weight"):
        load(folder)


def spoil_nothing(_: Path) -> None:
    pass


SOURCE_FAULTS: dict[str, tuple[str, list[str], Callable[[Path], object], str]] = {
    "absent": ("gone", [], spoil_nothing, "no such folder"),
    "to resume from": ("full/checkpoint-2", [], spoil_nothing, "give the run's own folder"),
    "unfinished": ("full", [], lambda run: (run / "finished.json").unlink(), "not finished"),
    "no model": ("full", [], lambda run: (run / "config.json").unlink(), "no checkpoint"),
    "broken config": (
        "full",
        [],
        lambda run: (run / "config.json").write_text("{"),
        "config.json: line 1, column 2: not JSON",
    ),
    "stock": (
        "full",
        [],
        lambda run: (run / "config.json").write_text('{"model_type": "llava"}'),
        "is a 'llava' checkpoint",
    ),
    "no weights": ("full", [], lambda run: (run / "model.safetensors").unlink(), "lacks model.safetensors"),
    "escaping index": (
        "full",
        [],
        lambda run: (run / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}'),
        "shards lie beside their index",
    ),
    "missing shard": (
        "full",
        [],
        lambda run: (run / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "lacks b.safetensors",
    ),
    "link out": (
        "full",
        [],
        lambda run: ((run / "tokenizer.json").unlink(), (run / "tokenizer.json").symlink_to("/etc/hostname")),
        "is a link out of its folder",
    ),
    "no tokenizer": ("full", [], lambda run: (run / "tokenizer_config.json").unlink(), "lacks tokenizer_config.json"),
    "unknown base": ("full", ["--base", "model=a/b"], spoil_nothing, "has no such base; its bases: language_model"),
    "base without name": (
        "full",
        ["--base", "tower=a/b"],
        spoil_nothing,
        "KEY one of model, language_model, vision_tower",
    ),
    "escaping base": ("full", ["--base", "language_model=../b"], spoil_nothing, "no name on the Hub"),
    "licence": ("full", ["--license", "Apache 2"], spoil_nothing, "identifiers are in lower case"),
    "no image": ("full", ["--image", "gone.png"], spoil_nothing, "--image gone.png: no such file"),
}


@pytest.mark.parametrize("name", SOURCE_FAULTS)
def test_what_cannot_be_released_is_said_in_one_line(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options, spoil, words = SOURCE_FAULTS[name]
    spoil(runs / folder)
    out = tmp_path / "out" / "release"
    assert dry_run(runs / folder, out, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not out.exists() and not list(out.parent.glob("*"))


@pytest.mark.parametrize("name", ["pocket", "../pocket", "me/../pocket", "/etc/passwd", "me/po cket", "me/-x", "a/b/c"])
def test_names_are_one_folder_below_another(name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--license", "mit", str(runs / "full"), name]) == 2
    assert "is no name on the Hub" in capsys.readouterr().err


def test_an_unknown_licence_is_asked_for_and_a_known_base_brings_its_own(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs / "full"), "me/pocket", "--dry-run"]) == 2
    assert "what licence lm, clip bind the model to is not known; give --license ID" in capsys.readouterr().err
    config = yaml.safe_load((runs / "full" / "config.yaml").read_text())
    config |= {"language_model": "checkpoints/vicuna-7b-v1.5", "vision_tower": "x/clip-vit-large-patch14-336"}
    (runs / "full" / "config.yaml").write_text(yaml.safe_dump(config))
    source = find_source(runs / "full", merge=False)
    assert source.licence() == "llama2" and source.hub_name("language_model") == "lmsys/vicuna-7b-v1.5"
    assert source.hub_name("vision_tower") == "openai/clip-vit-large-patch14-336"


def test_a_folder_that_is_no_release_is_left_alone(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert dry_run(runs / "full", tmp_path / "mine") == 2
    assert "is no earlier release" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


RESULT_FAULTS = {
    "revision": ({"generation__model": "f" * 64}, "is of another revision"),
    "method": (
        {"reduction": {"vision": {"name": "prumerge_plus", "budget": 40}}},
        "is of another method: prumerge_plus budget=40",
    ),
    "row": ({"row__method": "prumerge"}, "is of another method"),
    "no images": ({"row__images": "off"}, "asked without their images"),
    "no maker": ({"generation": None}, "does not say what made it"),
    "no row": ({"row": "pope"}, "does not say what made it"),
    "other answers": ({"generation__dtype": "float16"}, "are of different runs"),
}


@pytest.mark.parametrize("name", RESULT_FAULTS)
def test_results_of_something_else_are_refused(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_result: Callable
) -> None:
    changes, words = RESULT_FAULTS[name]
    write_result(tmp_path / "results", runs / "full", "textvqa", 5000)
    path = write_result(tmp_path / "results", runs / "full", **changes)
    assert dry_run(runs / "full", tmp_path / "release", "--results", str(tmp_path / "results")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error and str(path) in error
    assert not (tmp_path / "release").exists()


def test_weights_that_changed_since_their_evaluation_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_result: Callable
) -> None:
    write_result(tmp_path / "results", runs / "lora" / "merged")
    weights = load_file(runs / "lora" / "merged" / "model.safetensors")
    weights["lm_head.weight"] += 1e-3
    save_file(weights, runs / "lora" / "merged" / "model.safetensors", metadata={"format": "pt"})
    assert dry_run(runs / "lora", tmp_path / "release", "--merge", "--results", str(tmp_path / "results")) == 2
    assert "is of another revision" in capsys.readouterr().err


def test_results_are_found_by_the_checkpoint_they_name(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write_result: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results of other models do not matter; one that names this checkpoint with another content does."""
    from llava_prumerge.hub.evaluations import RESULTS, find_evaluations

    monkeypatch.chdir(tmp_path)
    source = find_source(runs / "full", merge=False)
    assert find_evaluations(source, None) == []
    write_result(RESULTS / "other", runs / "lora" / "merged")
    path = write_result(RESULTS / "mine", Path("runs/full"), "mme", 2374, value=1500.0)
    (found,) = find_evaluations(source, None)
    assert found.path == path and found.data == "MME (test)" and found.maximum == 2000
    twin = write_result(RESULTS / "twin", runs / "full", "mme", 2374)
    with pytest.raises(ReleaseError, match="are both of mme"):
        find_evaluations(source, None)
    header_path(twin.parent / "answers" / "mme.jsonl").unlink()
    write_result(RESULTS / "twin", runs / "full", "mme", 2374, generation__model="0" * 64)
    with pytest.raises(ReleaseError, match="mme.json is of another revision"):
        find_evaluations(source, None)
    assert dry_run(runs / "full", tmp_path / "release", "--results", str(tmp_path / "nothing")) == 2
    assert "no such folder of results" in capsys.readouterr().err


def test_a_secret_in_a_command_is_not_published(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts = json.loads((runs / "full" / "environment.json").read_text())
    starts[0]["command"].append("token=hf_abcdefghijklmnopqrstuvwxyz")
    (runs / "full" / "environment.json").write_text(json.dumps(starts))
    assert dry_run(runs / "full", tmp_path / "release") == 2
    error = capsys.readouterr().err
    assert "looks like a secret" in error and "abcdefghij" not in error
    assert not (tmp_path / "release").exists()


def test_commands_are_shown_as_one_types_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llava_prumerge.hub.card import show_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    words = [
        "/x/bin/python3.11",
        "/y/llava_prumerge/llava_prumerge/evaluation/run.py",
        "run",
        f"{tmp_path}/a b",
        "data=/home/me/d",
        "x=[]",
    ]
    assert show_command(words) == "python -m llava_prumerge.evaluation.run run 'a b' data=~/d 'x=[]'"
    assert (
        show_command(["/x/python", "/llava_prumerge/llava_prumerge/viz/__main__.py"]) == "python -m llava_prumerge.viz"
    )
