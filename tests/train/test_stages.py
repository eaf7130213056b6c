"""What each stage trains and saves: run through the entry point on a tiny world, then read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_prumerge.model.adapters import Base, load_adapter, read_base, write_base
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.part_names import part_names
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.run import main
from llava_prumerge.train.stages import parameter_groups, prepare_stage, start_base


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """One finished run per stage, with tensorboard in the first."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"projector": {"merge": True, "report_to": ["tensorboard"]}, "lora": {"merge": True}, "full": {}}
    for stage, change in changes.items():
        assert main([*world.recipe(stage, folder / stage, **change), world.prumerge_plus]) == 0
    return folder


def start_of(world, run: Path):
    """The model a run started from."""
    arguments = load_arguments([str(run / "config.yaml")])
    return start_base(arguments).build(arguments.projector, arguments.reduction)[0]


def changed(before, after) -> set[str]:
    """Names of parameters that differ."""
    old = dict(before.named_parameters())
    return {name for name, parameter in after.named_parameters() if not torch.equal(parameter, old[name])}


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_only_what_the_stage_names_has_changed(world, runs, stage) -> None:
    before, (after, _) = start_of(world, runs / stage), (load_model if stage == "full" else load_adapter)(runs / stage)
    role_of = part_names(before).role
    roles = {"projector" if role_of(name) == "projector" else name.split(".")[1] for name in changed(before, after)}
    languages = {"language_model"} if stage == "lora" else {"language_model", "weight"}  # lm_head.weight trains in full
    assert roles == {"projector"} if stage == "projector" else roles == {"projector"} | languages
    if stage == "lora":
        others = {n for n in changed(before, after) if "language_model" in n and not n.endswith("_proj.weight")}
        assert not others


def test_a_run_leaves_its_settings_its_environment_and_its_metrics(runs) -> None:
    run = runs / "projector"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["stage"] == "projector" and config["reduction"]["vision"]["name"] == "prumerge_plus"
    assert json.loads((run / "environment.json").read_text())[0]["packages"]["transformers"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert all(math.isfinite(line[key]) for key in ("loss", "learning_rate", "grad_norm", "seconds_left"))
        assert 1 <= line["kept_min"] <= line["kept_mean"] <= line["kept_max"] <= 16 and 0 <= line["padding_share"] < 1
    assert len({line["kept_mean"] for line in lines}) > 1, "the reduction is ragged, so the mean must move"
    assert any((run / "tensorboard").rglob("events*"))
    assert json.loads((run / "finished.json").read_text())["steps"] == 6


def test_stage_one_leaves_a_projector_file_and_a_complete_model(runs) -> None:
    weights = load_file(runs / "projector" / "mm_projector.safetensors")
    parts = [f"linear_{i}.{kind}" for i in (1, 2) for kind in ("bias", "weight")]
    assert sorted(weights) == [f"multi_modal_projector.{part}" for part in parts]
    assert (
        json.loads((runs / "projector" / "config.json").read_text())["reduction"]["vision"]["name"] == "prumerge_plus"
    )
    assert not (runs / "projector" / "model.safetensors").exists()
    merged, _ = load_model(runs / "projector" / "merged")
    assert torch.equal(
        merged.model.multi_modal_projector.linear_1.weight, weights["multi_modal_projector.linear_1.weight"]
    )


def test_adapters_sit_on_the_language_model_alone(runs) -> None:
    names = load_file(runs / "lora" / "adapter_model.safetensors")
    assert len(names) == 3 * 7 * 2 and all(".language_model.layers." in name for name in names)


def test_the_adapter_folder_and_the_merged_model_answer_alike(runs, logits_of) -> None:
    adapter, processor = load_model(runs / "lora")
    merged, _ = load_model(runs / "lora" / "merged")
    torch.testing.assert_close(logits_of(adapter, processor), logits_of(merged, processor), rtol=0, atol=1e-6)


def test_saved_adapters_equal_the_model_in_training(world, tmp_path, logits_of) -> None:
    from llava_prumerge.train.assembly import build_trainer

    arguments = load_arguments([*world.recipe("lora", tmp_path / "run"), world.prumerge_plus])
    trainer = build_trainer(arguments)
    trainer.train()
    trainer.save_model()
    loaded, processor = load_adapter(tmp_path / "run")
    torch.testing.assert_close(logits_of(trainer.model, processor), logits_of(loaded, processor), rtol=1e-5, atol=1e-5)
    assert not trainer.model.get_base_model().model.vision_tower.training


@pytest.mark.parametrize("path", ["lora/merged", "projector/merged", "full"])
def test_auto_classes_read_complete_models(runs, path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, report = AutoModelForImageTextToText.from_pretrained(runs / path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (
        type(model).__name__ == "PruMergeLlavaForConditionalGeneration" and model.model.reducer.name == "prumerge_plus"
    )
    assert model.config.text_config.use_cache and AutoProcessor.from_pretrained(runs / path).image_token == "<image>"


def test_another_method_can_be_put_on_trained_weights(runs) -> None:
    model, _ = load_model(runs / "lora", reduction={"vision": {"name": "prumerge", "budget": 3}})
    assert model.model.reducer.budget == 3
    model, _ = load_model(runs / "lora", reduction={})
    assert model.model.reducer is None


def test_a_base_on_the_hub_is_stored_by_its_name(tmp_path) -> None:
    base = Base("llava-hf/llava-1.5-7b-hf", seed=3)
    write_base(base, tmp_path)
    assert json.loads((tmp_path / "base.json").read_text())["model"] == {"hub": "llava-hf/llava-1.5-7b-hf"}
    assert read_base(tmp_path) == base


def test_a_moved_tree_still_finds_its_base(world, runs, tmp_path) -> None:
    import shutil

    shutil.copytree(world.folder, tmp_path / "world")
    run = tmp_path / "world" / "run"
    shutil.copytree(runs / "projector", run)
    base = json.loads((run / "base.json").read_text())
    base["language_model"] = {"path": "/nowhere/lm", "from_here": "../lm"}
    (run / "base.json").write_text(json.dumps(base))
    assert Path(read_base(run).language_model).resolve() == tmp_path / "world" / "lm"
    base["language_model"]["from_here"] = "../gone"
    (run / "base.json").write_text(json.dumps(base))
    with pytest.raises(LoadingError, match="names language_model /nowhere/lm"):
        read_base(run)


def test_building_twice_gives_the_same_model(world) -> None:
    base = Base(None, str(world.folder / "lm"), str(world.folder / "clip"), seed=3)
    state = torch.random.get_rng_state()
    first, second = (base.build()[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = Base(None, base.language_model, base.vision_tower, seed=4).build()[0]
    assert not torch.equal(
        other.model.multi_modal_projector.linear_1.weight, first["model.multi_modal_projector.linear_1.weight"]
    )


def test_stage_two_can_start_from_a_complete_model(world, runs, tmp_path) -> None:
    recipe = world.recipe("lora", tmp_path / "run", model=str(runs / "full"), max_steps=1)
    assert main(recipe) == 0
    model, _ = load_model(tmp_path / "run")
    assert model.model.reducer.name == "prumerge_plus", (
        "the method comes from the checkpoint when no method file is given"
    )
    assert json.loads((tmp_path / "run" / "base.json").read_text())["model"]["path"] == str(runs / "full")


def test_parameter_groups_are_role_by_decay(world) -> None:
    arguments = load_arguments(world.recipe("full", world.folder / "x", weight_decay=0.1, projector_lr=3e-4))
    model = prepare_stage(start_base(arguments).build()[0], arguments)
    decaying = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    groups = {group["name"]: group for group in parameter_groups(model, decaying, arguments)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "base": (1e-3, 0.1),
        "base, no decay": (1e-3, 0.0),
        "projector": (3e-4, 0.1),
        "projector, no decay": (3e-4, 0.0),
    }
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trained)


@pytest.fixture
def scaled(monkeypatch):
    """A method with a parameter, known for one test."""
    from llava_prumerge.methods import base, registry
    from llava_prumerge.methods.settings import Settings

    class Scaled(base.VisionReducer):
        name = "scaled"

        def __init__(self, settings: Settings) -> None:
            super().__init__(settings)
            self.scale = torch.nn.Parameter(torch.empty(1))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            torch.nn.init.ones_(self.scale)

        def forward(self, image):
            kept = image.features[:, ::2] * self.scale
            origin = torch.arange(0, image.features.shape[1], 2).expand(kept.shape[:2])
            return kept, torch.ones_like(origin, dtype=torch.bool), origin

    registry.discover()
    monkeypatch.setitem(registry._REGISTRY, "scaled", Scaled)


@pytest.mark.parametrize("stage", ["lora", "full"])
def test_the_methods_parameters_train_and_return(world, tmp_path, scaled, logits_of, stage) -> None:
    run = tmp_path / "run"
    recipe = world.recipe(stage, run, reduction={"vision": {"name": "scaled"}}, method_lr=0.05, merge=True)
    assert main(recipe) == 0
    model, processor = load_model(run)
    assert model.model.reducer.scale.item() != pytest.approx(1.0, abs=0.05)
    if stage == "lora":
        assert load_file(run / "method.safetensors")["reducer.scale"].item() == model.model.reducer.scale.item()
        merged, _ = load_model(run / "merged")
        torch.testing.assert_close(logits_of(model, processor), logits_of(merged, processor), rtol=0, atol=1e-6)
        (run / "method.safetensors").unlink()
        with pytest.raises(LoadingError, match="method.safetensors lacks weights: reducer.scale"):
            load_model(run)
