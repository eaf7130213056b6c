"""Recipes: how files and overrides merge, and what is refused with which words."""

import typing
from pathlib import Path

import pytest

from llava_prumerge.data.recipe import read_recipe
from llava_prumerge.train.arguments import (
    RecipeError,
    TrainArguments,
    accumulation_steps,
    build_arguments,
    describe_arguments,
    load_arguments,
    method_name,
)
from llava_prumerge.train.ranges import RANGES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUMBERS = (int, int | None, float, float | None)
RECIPES = sorted(str(path.relative_to(CONFIGS / "train")) for path in (CONFIGS / "train").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe: str) -> None:
    arguments = load_arguments([str(CONFIGS / "train" / recipe)])
    assert arguments.output_dir and "{" not in arguments.output_dir
    if arguments.deepspeed is not None:
        assert (CONFIGS.parent / arguments.deepspeed).is_file()


# LLaVA-1.5's published numbers: batch, rate, projector rate, ZeRO stage, image aspect, steps per epoch of its data set.
@pytest.mark.parametrize(
    ("recipe", "batch", "rate", "projector_rate", "zero", "aspect", "records", "steps"),
    [
        ("pretrain", 256, 1e-3, None, "zero2", "square", 558128, 2181),
        ("finetune", 128, 2e-5, None, "zero3", "pad", 665298, 5198),
        ("finetune_lora", 128, 2e-4, 2e-5, "zero3", "pad", 665298, 5198),
        ("finetune_lora_prumerge", 160, 2e-4, 2e-5, "zero3", "pad", 665298, 4159),
    ],
)
def test_the_published_numbers(recipe, batch, rate, projector_rate, zero, aspect, records, steps) -> None:
    arguments = load_arguments([str(CONFIGS / "train" / f"{recipe}.yaml")])
    assert (arguments.global_batch, arguments.learning_rate, arguments.projector_lr) == (batch, rate, projector_rate)
    assert Path(arguments.deepspeed).stem == zero and arguments.image_aspect == aspect
    assert (arguments.scheduler, arguments.warmup_ratio, arguments.weight_decay) == ("cosine", 0.03, 0.0)
    assert (arguments.precision, arguments.max_length, arguments.max_grad_norm) == ("bf16", 2048, 0.0)
    assert -(-records // batch) == steps
    if arguments.stage == "lora":
        assert (arguments.lora_rank, arguments.lora_alpha, arguments.lora_dropout) == (128, 256, 0.05)


def test_pocket_recipes_keep_what_makes_the_method() -> None:
    for name in ("pretrain", "finetune", "finetune_lora"):
        real = load_arguments([str(CONFIGS / "train" / f"{name}.yaml")])
        pocket = load_arguments([str(CONFIGS / "train" / "pocket" / f"{name}.yaml")])
        for key in (
            "stage",
            "template",
            "image_aspect",
            "group_by_modality_length",
            "scheduler",
            "warmup_ratio",
            "weight_decay",
        ):
            assert getattr(pocket, key) == getattr(real, key), key


def test_later_files_win_and_overrides_win_over_files(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 2\nglobal_batch: 64\nper_device_batch: 8\n")
    (tmp_path / "recipe.yaml").write_text("include: base.yaml\nglobal_batch: 32\n")
    (tmp_path / "late.yaml").write_text("epochs: 3\n")
    values = read_recipe(["per_device_batch=4", str(tmp_path / "recipe.yaml"), str(tmp_path / "late.yaml")])
    assert values == {"epochs": 3, "global_batch": 32, "per_device_batch": 4}


def test_a_method_file_replaces_the_whole_block(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("vision: {name: prumerge, budget: 9}\ndecoder: {name: fastv, layer: 2}\n")
    (tmp_path / "b.yaml").write_text("vision: {name: random}\n")
    tokens = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "reduction.vision.budget=5"]
    assert build_arguments(read_recipe(tokens)).reduction == {"vision": {"name": "random", "budget": 5}}


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="key 'learning_rat' is not known; did you mean 'learning_rate'"):
        build_arguments({"learning_rat": 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", "fast", "must be a finite number"),
        ("global_batch", 2.5, "must be a whole number"),
        ("merge", "yes please", "must be true or false"),
        ("stage", "qlora", "must be one of method, projector, lora, full"),
        ("report_to", 3, "must be a list of names"),
        ("output_dir", ["a"], "must be text"),
        ("learning_rate", float("nan"), "must be a finite number"),
        ("epochs", float("inf"), "must be a finite number"),
        ("weight_decay", "-.inf", "must be a finite number"),
        ("adam_beta1", True, "must be a finite number"),
        ("lora_rank", True, "must be a whole number"),
        ("lora_rank", 10**400, "must be a whole number"),
        ("learning_rate", 10**400, "must be a finite number"),
        ("max_steps", "1e999", "must be a whole number"),
        ("workers", [2], "must be a whole number"),
        ("seed", "x" * 5000, "must be a whole number"),
        ("stage", {"a": ["lora"] * 999}, "must be one of"),
    ],
)
def test_a_wrong_type_is_refused_by_name(key: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=f"{key}=.*{message}"):
        build_arguments({key: value})


@pytest.mark.parametrize("key", RANGES)
def test_numbers_beyond_their_range_are_refused_by_name(key: str) -> None:
    accepted, hints = RANGES[key], typing.get_type_hints(TrainArguments)
    whole = hints[key] in (int, int | None)
    beyond = [accepted.low - 1, accepted.high + 1, *([] if whole else [accepted.low - 1e-9])]
    beyond += [accepted.low] * (not accepted.with_low) + [accepted.high] * (not accepted.with_high)
    for value in beyond:
        with pytest.raises(RecipeError, match=rf"^{key}=\S+: must be (at least|greater than) "):
            load_arguments([f"{key}={value}"])


def test_every_number_has_a_range_that_its_default_and_every_recipe_keep() -> None:
    """The recipes that ship are read by the first test, with the same check."""
    numbers = {key for key, hint in typing.get_type_hints(TrainArguments).items() if hint in NUMBERS}
    assert numbers == set(RANGES)
    load_arguments([])


def test_large_whole_numbers_stay_exact() -> None:
    assert load_arguments(["max_steps=999999937"]).max_steps == 999_999_937
    with pytest.raises(RecipeError, match="max_steps=1000000000000000001: must be a whole number"):
        load_arguments(["max_steps=1000000000000000001"])


@pytest.mark.parametrize(
    "token", ["global_batch=0", "warmup_ratio=1", "report_to=console", "learning_rate=-1e-3", "=3", "a..b=3"]
)
def test_impossible_values_are_refused(token: str) -> None:
    with pytest.raises(RecipeError):
        load_arguments([token])


def test_yaml_quirks_are_taken_as_meant() -> None:
    arguments = load_arguments(["learning_rate=1e-3", "report_to=none", "run_name=7", "projector=null"])
    assert (arguments.learning_rate, arguments.report_to, arguments.run_name) == (1e-3, [], "7")
    assert load_arguments(["report_to=[wandb, tensorboard]"]).report_to == ["wandb", "tensorboard"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken, listed, loop = tmp_path / "broken.yaml", tmp_path / "list.yaml", tmp_path / "loop.yaml"
    broken.write_text("a: [1\n")
    listed.write_text("- a\n")
    loop.write_text("include: loop.yaml\n")
    for path, message in (
        (broken, "not valid YAML"),
        (listed, "mapping"),
        (loop, "includes itself"),
        (tmp_path / "no.yaml", "no such file"),
    ):
        with pytest.raises(RecipeError, match=f"{path.name}.*{message}"):
            read_recipe([str(path)])


def test_the_global_batch_holds_for_any_number_of_ranks() -> None:
    arguments = load_arguments(["global_batch=128", "per_device_batch=16"])
    assert [accumulation_steps(arguments, ranks) for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]
    for ranks in (3, 16):
        with pytest.raises(RecipeError, match="global_batch=128 is not a multiple"):
            accumulation_steps(arguments, ranks)


def test_a_complete_checkpoint_takes_the_place_of_the_parts() -> None:
    arguments = load_arguments([str(CONFIGS / "train" / "finetune.yaml"), "model=somewhere"])
    assert (arguments.language_model, arguments.vision_tower, arguments.projector) == (None, None, None)


def test_output_folders_carry_the_method() -> None:
    block = {"vision": {"name": "prumerge"}, "decoder": {"name": "fastv"}}
    assert build_arguments({"reduction": block, "output_dir": "runs/x-{method}"}).output_dir == "runs/x-prumerge+fastv"
    assert method_name(None) == method_name({}) == method_name({"vision": {"name": "none"}}) == "none"


def test_help_lists_every_setting() -> None:
    text = describe_arguments()
    assert "max_grad_norm" in text and "clip the global gradient norm" in text and "output_dir" in text


def test_a_recipe_or_method_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(RecipeError, match="nix.yaml: no such file; method 'nix' is not known; .*prumerge_plus"):
        read_recipe([str(CONFIGS / "method" / "nix.yaml")])


@pytest.mark.parametrize("path", sorted((CONFIGS / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_file_is_a_reduction_block(path: Path) -> None:
    assert list(read_recipe([str(path)])) == ["reduction"]


@pytest.mark.parametrize(
    ("flags", "expected"), [("fma avx512f amx_bf16", True), ("avx512_bf16", True), ("fma avx512f", False)]
)
def test_auto_precision_asks_the_processor(flags: str, expected: bool, tmp_path: Path, monkeypatch) -> None:
    from llava_prumerge.train import settings

    monkeypatch.setattr(settings, "CPU_FLAGS", tmp_path / "cpuinfo")
    settings.CPU_FLAGS.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(settings.torch.cuda, "is_available", lambda: False)
    assert settings.uses_bf16(build_arguments({"precision": "auto"})) is expected
    assert settings.uses_bf16(build_arguments({"precision": "bf16"})) is True
    assert settings.uses_bf16(build_arguments({"precision": "fp32"})) is False
