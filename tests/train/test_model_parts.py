"""Parts of two sizes are refused before torch is imported, by the files' shapes or by the names; a name on the Hub is a place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.model_parts import check_parts, projector_widths, sizes_in
from llava_prumerge.train.preflight import check_inputs, missing_inputs
from llava_prumerge.train.run import main

TRAIN = Path(__file__).resolve().parents[2] / "configs" / "train"
RECIPES = sorted(path for path in TRAIN.rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(TRAIN).as_posix())
def test_the_parts_of_every_shipped_recipe_belong_together(recipe: Path) -> None:
    arguments = load_arguments([str(recipe)])
    check_parts(arguments)
    size = {"13b": {"13"}, "small_clip": {"0.5"}} | dict.fromkeys(("pocket", "family", "small", "photos"), set())
    size = size.get(recipe.parent.name, {"7"})
    parts = (arguments.language_model, arguments.output_dir, arguments.projector)
    told = [sizes_in(part) for part in parts if part is not None]
    assert all(one == size or (not one and recipe.parent.name == "small_clip") for one in told)


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("finetune_lora", "language_model=/data/vicuna-13b-v1.5", "projector=.*7b.* is for 7B, .* is 13B: RECIPE=13b"),
        ("finetune", "language_model=lmsys/vicuna-13b-v1.5", "projector=.*7b.* is for 7B, .* is 13B: RECIPE=13b"),
        ("13b/finetune", "language_model=checkpoints/vicuna-7b-v1.5", "is for 13B, language_model=.* is 7B"),
        ("pretrain", "language_model=checkpoints/vicuna-13b-v1.5", "output_dir=.*7b-pretrain.* is called 7B, .* 13B"),
        ("finetune", "model=llava-hf/llava-1.5-13b-hf", "output_dir=.*7b.* is called 7B, model=.* 13B"),
    ],
)
def test_two_sizes_are_refused_in_one_line(tmp_path, monkeypatch, capsys, recipe, setting, message) -> None:
    """Before anything has been downloaded: by a dry run, and by a start."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        check_parts(load_arguments([str(TRAIN / f"{recipe}.yaml"), setting]))
    for flags in (["--dry-run"], ["--check"]):
        assert main([str(TRAIN / f"{recipe}.yaml"), setting, *flags]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_projector_that_is_here_is_judged_by_its_shapes(world, tmp_path) -> None:
    """The world's: 32 numbers per token on both sides. Names then say nothing."""
    (recipe,) = world.recipe("lora", tmp_path / "run", deepspeed=None)
    assert projector_widths(world.projector()) == (32, 32)
    check_parts(load_arguments([recipe]))
    wider = tmp_path / "lm-7b"
    wider.mkdir()
    (wider / "config.json").write_text(json.dumps({"hidden_size": 48}))
    with pytest.raises(RecipeError, match=r"projector=.* leads from 32 to 32 .* need 32 to 48"):
        check_parts(load_arguments([recipe, f"language_model={wider}"]))
    (wider / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 32}}))
    misnamed = tmp_path / "projector-13b.safetensors"
    misnamed.symlink_to(world.projector())
    check_parts(load_arguments([recipe, f"language_model={wider}", f"projector={misnamed}"]))
    assert projector_widths(wider) is None  # a folder without one
    misnamed.unlink()
    misnamed.write_bytes(b"\0" * 20)  # cut short: said when it is loaded
    assert projector_widths(misnamed) is None


def test_names_tell_a_size_where_they_have_one() -> None:
    assert sizes_in("runs/llava-v1.5-13b-pretrain-none/mm_projector.safetensors") == {"13"}
    assert sizes_in("/data/7b/other/tiny") == set() and sizes_in("vicuna-1.1b") == {"1.1"}
    assert sizes_in("checkpoints/vicuna-7b-v1.5") == {"7"} and sizes_in("runs/lib7bx") == set()


def test_names_on_the_hub_are_taken_where_folders_are(tmp_path, monkeypatch, capsys) -> None:
    """By a plan at published shapes without the network; a start asks the Hub and says in one line that it cannot."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(TRAIN.parent)
    names = ["language_model=lmsys/vicuna-7b-v1.5", "vision_tower=openai/clip-vit-large-patch14-336"]
    assert main([str(TRAIN / "pretrain.yaml"), *names, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "20.98M of 7.06B parameters train" in plan and "not here yet: data=" in plan
    whole = ["model=llava-hf/llava-1.5-13b-hf", "output_dir=run"]
    assert main([str(TRAIN / "finetune_lora.yaml"), *whole, "--dry-run"]) == 0
    assert "of 13.85B parameters train" in capsys.readouterr().out
    assert main([str(TRAIN / "finetune_lora.yaml"), "model=nobody/unknown", "output_dir=run", "--dry-run"]) == 2
    assert "model=nobody/unknown: not here, and not a name whose shape is known" in capsys.readouterr().err
    (tmp_path / "own").mkdir()
    for here, missing in (("language_model", "vision_tower"), ("vision_tower", "language_model")):
        parts = [f"{here}=own", f"{missing}=nobody/unknown", "output_dir=run", "--dry-run"]
        assert main([str(TRAIN / "pretrain.yaml"), *parts]) == 2
        assert f"error: {missing}=nobody/unknown: not here" in capsys.readouterr().err
    monkeypatch.setattr("llava_prumerge.train.dry_run.is_offline", lambda: False)  # it is asked, and gives nothing here
    assert main([str(TRAIN / "finetune_lora.yaml"), "model=nobody/unknown", "output_dir=run", "--dry-run"]) == 2
    assert "model=nobody/unknown: does not exist here, and the Hub does not give it" in capsys.readouterr().err


def test_a_start_asks_the_hub_for_its_names_alone(world, tmp_path, monkeypatch) -> None:
    (recipe,) = world.recipe("projector", tmp_path / "run")
    asked = []
    monkeypatch.setattr("llava_prumerge.train.preflight.is_offline", lambda: False)
    monkeypatch.setattr("llava_prumerge.train.preflight.folder_of", lambda text, called: asked.append((called, text)))
    arguments = load_arguments([recipe, "language_model=someone/llama"])
    assert list(missing_inputs(arguments)) == ["language_model"]
    check_inputs(arguments)
    assert asked == [("language_model=", "someone/llama")]
    for path in ("runs/llama", "./llama", "/nowhere/llama", "llama", f"{world.folder.name}/a/b"):
        with pytest.raises(RecipeError, match=f"language_model={path} .missing"):
            check_inputs(load_arguments([recipe, f"language_model={path}"]))
    assert len(asked) == 1
