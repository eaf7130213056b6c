"""The plan of a run: every shipped recipe at its full size without weights or data, and what its numbers mean."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from llava_prumerge.efficiency.memory import ADAM, lora_parameters
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.train.arguments import RecipeError, load_arguments
from llava_prumerge.train.dry_run import describe_run
from llava_prumerge.train.estimate import BACKENDS, PLAIN, gigabytes, kept_tokens, read_backend, shape_of
from llava_prumerge.train.published import published_config
from llava_prumerge.train.run import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FAMILIES = (
    "family/finetune",
    "family/finetune_lora",
    "pocket/llava_next",
    "pocket/qwen2_5_vl",
    "pocket/video",
    "photos/pretrain",  # the projector alone, without a method
    "photos/finetune",  # behind it
    "finetune_method",  # below
    "pocket/finetune_method",  # behind a model that a run has left
)  # see test_family_plans.py
RECIPES = sorted(
    path
    for path in (CONFIGS / "train").rglob("*.yaml")
    if path.relative_to(CONFIGS / "train").with_suffix("").as_posix() not in FAMILIES
)
METHODS = sorted((CONFIGS / "method").glob("*.yaml"))
SHIPPED_STEPS = {"pretrain": 2181, "finetune_lora_prumerge": 4159}  # the others: one pass over the mix at 128
SHIPPED_STEPS |= {"13b/finetune_lora_prumerge": 3466}  # 665,298 records at 192


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """A folder that holds configs and nothing else a recipe names: as before anything has been downloaded."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    (tmp_path / "playground").mkdir()
    (tmp_path / "playground" / "pocket").symlink_to(CONFIGS.parent / "playground" / "pocket")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(CONFIGS / "train").as_posix())
def test_every_recipe_has_a_plan_before_anything_is_downloaded(bare, capsys, recipe: Path) -> None:
    """At its full size: a 7B model has no weights here."""
    assert main([str(recipe), str(CONFIGS / "method" / "prumerge_plus.yaml"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    pocket = recipe.parent.name == "pocket"
    total = re.search(r"of ([\d.]+)([MB]) parameters train", text)
    small = recipe.parent.name.startswith("small")  # below a billion
    assert total and total.group(2) == ("M" if pocket or small else "B")
    # LLaVA-1.5 7B and 13B, and their adapters of rank 128
    smallest, largest = (13.34, 13.86) if recipe.parent.name == "13b" else (7.06, 7.4)
    assert pocket or small or smallest <= float(total.group(1)) <= largest
    assert re.search(r"projector +[\d.]+[kM] in 2 tensors, lr \d", text)
    before, after = re.search(r"tokens per step about ([\d.]+)k before reduction, ([\d.]+)k after", text).groups()
    assert float(after) < float(before)
    assert "per image 144 and 36" in text if pocket else "per image 576 and 144" in text
    assert "<- this recipe" in text and "GB per GPU" in text
    name = recipe.relative_to(CONFIGS / "train").with_suffix("").as_posix()
    own_steps = pocket or recipe.parent.name == "small"  # on data of its own
    assert own_steps or f"steps {SHIPPED_STEPS.get(name, SHIPPED_STEPS.get(recipe.stem, 5198))}:" in text
    assert pocket or "not here yet:" in text
    assert not (bare / "runs").exists()


def test_a_methods_own_weights_have_a_plan(bare, capsys) -> None:
    """At 7B: nothing but MetaCompress trains. A method without weights is refused."""
    recipe = str(CONFIGS / "train" / "finetune_method.yaml")
    assert main([recipe, str(CONFIGS / "method" / "meta_compress.yaml"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "stage method, method meta_compress: 524.35k of 7.06B parameters train" in text
    assert "steps 312:" in text and "gradients clipped at 0.01" in text and "projector" not in text
    assert main([recipe, str(CONFIGS / "method" / "prumerge_plus.yaml"), "--dry-run"]) == 2
    assert "prumerge_plus has no weights of its own that could train" in capsys.readouterr().err


def arguments_of(*tokens: str):
    return load_arguments([str(CONFIGS / "train" / "finetune_lora.yaml"), *tokens])


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_every_method_says_how_many_tokens_it_leaves(method: Path) -> None:
    arguments = arguments_of(str(method))
    config = published_config(arguments)
    kept = kept_tokens(arguments, config, shape_of(config))
    assert 0 < kept.equivalent <= 576 and kept.source
    acts = kept.equivalent < 576
    assert acts or any(word in kept.source for word in ("every patch stays", "unknown", "while it trains"))


@pytest.mark.parametrize(
    ("name", "tokens", "setting"),
    [
        ("prumerge_plus", 144, None),
        ("prumerge", 32, None),
        ("random", 64, "reduction.vision.budget=64"),
        ("fastv", (2 * 576 + 30 * 288) / 32, None),
        ("none", 576, None),
    ],
)
def test_tokens_left_by_known_methods(name, tokens, setting) -> None:
    arguments = arguments_of(str(CONFIGS / "method" / f"{name}.yaml"), *([setting] if setting else []))
    config = published_config(arguments)
    assert kept_tokens(arguments, config, shape_of(config)).equivalent == pytest.approx(tokens)


def test_a_reducer_and_a_pruner_compose() -> None:
    arguments = arguments_of(
        str(CONFIGS / "method" / "prumerge_plus.yaml"), "reduction.decoder={name: fastv, layer: 2, keep: 0.5}"
    )
    config = published_config(arguments)
    assert kept_tokens(arguments, config, shape_of(config)).visual == (144,) * 2 + (72,) * 30


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_published_shape_is_the_models(size) -> None:
    """Sizes that memory is computed from, against the parameters of the model on the meta device."""
    arguments = arguments_of(f"language_model=somewhere/vicuna-{size}-v1.5")
    config = published_config(arguments)
    with torch.device("meta"):
        model = PruMergeLlavaForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape_of(config).parameters


def test_memory_falls_with_gpus_as_zero_says() -> None:
    """Against sums written out here: states over GPUs at stage 2, weights too at stage 3, none of them when offloaded."""
    arguments = arguments_of("per_device_batch=1")
    config = published_config(arguments)
    shape = shape_of(config)
    counts = kept_tokens(arguments, config, shape)
    trained = shape.projector_parameters + lora_parameters(shape.language, 128)
    total = shape.parameters + lora_parameters(shape.language, 128)

    def fall(backend: str) -> float:
        return 1e9 * (gigabytes(arguments, shape, counts, backend, 1) - gigabytes(arguments, shape, counts, backend, 2))

    assert fall("ZeRO-2") == pytest.approx((2 + ADAM) * trained / 2, rel=1e-6)
    assert fall("ZeRO-3") == pytest.approx((2 * total + (2 + ADAM) * trained) / 2, rel=1e-6)
    assert fall("ZeRO-3, offload") == pytest.approx(2 * trained / 2, rel=1e-6)
    assert fall(PLAIN) == pytest.approx(-4.0 * trained, rel=1e-6)


def test_four_bits_save_what_they_should() -> None:
    plain, four = arguments_of("deepspeed=null"), arguments_of("deepspeed=null", "quantization=nf4")
    config = published_config(plain)
    shape = shape_of(config)
    counts = kept_tokens(plain, config, shape)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    saved = gigabytes(plain, shape, counts, PLAIN, 1) - gigabytes(four, shape, counts, PLAIN, 1)
    assert saved * 1e9 == pytest.approx(3.5 * matrices)


@pytest.mark.parametrize(
    ("file", "name"), [("zero2", "ZeRO-2"), ("zero3", "ZeRO-3"), ("zero3_offload", "ZeRO-3, offload")]
)
def test_deepspeeds_files_are_recognised(file, name) -> None:
    assert read_backend(arguments_of(f"deepspeed={CONFIGS / 'deepspeed' / file}.json")) == name and name in BACKENDS


def test_what_no_name_stands_for_is_refused(bare) -> None:
    with pytest.raises(RecipeError, match="language_model=nowhere/llama: not here, and not a name .*vicuna-7b-v1.5"):
        describe_run(arguments_of("language_model=nowhere/llama"), 1)
    (bare / "broken.json").write_text("{")
    with pytest.raises(RecipeError, match=r"broken.json: cannot be read"):
        describe_run(arguments_of("deepspeed=broken.json"), 1)
