"""Every setting of a training run: typed, checked, with its unit and default in one place.

Imports nothing heavy, so that a mistake in a recipe is reported in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from llava_prumerge.data.recipe import SETTINGS, RecipeError, read_names, read_recipe
from llava_prumerge.data.recipe_data import FRAMES
from llava_prumerge.ground import shipped
from llava_prumerge.ground.naming import not_known, shown
from llava_prumerge.methods.labels import method_name
from llava_prumerge.methods.plugins import load_plugins
from llava_prumerge.methods.resolve import is_setting, resolve, stored_reduction
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.train.ranges import check_ranges

ACCEPTED = ("recipe", "method", "records", "images", "base")
"""What a run is bound to, by the names that `accept_changes` takes."""


LARGEST = 10**18
"""Whole numbers beyond it are no setting's."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with its one-line explanation, shown by `--help`."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class ModelArguments:
    """Where the model comes from and how it computes."""

    stage: Literal["method", "projector", "lora", "full"] = option(
        "projector", "what trains beside the method's own parameters; method: nothing else"
    )
    model: str | None = option(None, "complete checkpoint folder; takes the place of the next three")
    language_model: str | None = option(None, "folder of the language model with its tokenizer")
    vision_tower: str | None = option(None, "folder of the vision tower with its image processor")
    projector: str | None = option(None, "mm_projector.safetensors of stage 1; null: a fresh one (stage projector)")
    reduction: dict[str, Any] | None = option(
        None, "a method by name, file or block, also as method=NAME; null: what `model` says, else no method"
    )
    plugin: list[str] = option([], "modules or files that register methods of your own")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = option("sdpa", "attention implementation")
    precision: Literal["bf16", "fp32", "auto"] = option(
        "bf16", "bf16: autocast, or bf16 weights under DeepSpeed; auto: bf16 where the hardware multiplies in it"
    )
    tower_cache: str | None = option(
        None, "folder that keeps what the frozen vision tower makes of each image, for later epochs and runs"
    )
    tower_cache_gb: int = option(20, "gigabytes that it may hold; what goes beyond is computed each time")
    device: Literal["auto", "cpu"] = option("auto", "auto: the GPUs that are visible, the CPU where there are none")
    quantization: Literal["none", "nf4"] = option(
        "none", "nf4: the language model's frozen matrices in 4 bits (QLoRA; stage lora, CUDA, bitsandbytes)"
    )
    lora_rank: int = option(128, "rank r of the adapters (stage lora)")
    lora_alpha: int = option(256, "scale numerator: the update is alpha / r times B A")
    lora_dropout: float = option(0.05, "dropout on the adapters' input")
    merge: bool = option(False, "also write the complete model, adapters merged in, to OUTPUT_DIR/merged")


@dataclass(kw_only=True)
class DataArguments:
    """Which records are read and how they become batches."""

    objective: Literal["answers", "regions"] = option(
        "answers",
        "answers: the next token; regions: patches become the words of the record's regions (stage projector)",
    )
    packing: Literal["none", "turns"] = option(
        "none", "turns: those of a record share its image and do not see each other, as if each were asked by itself"
    )
    data: str | None = option(None, "records in LLaVA's JSON format")
    images: str | None = option(None, "folder that the records' image paths are relative to")
    videos: str | None = option(None, "folder that the records' video paths are relative to; null: images")
    frames: int = option(FRAMES, "frames taken of a video, evenly spaced from the first to the last")
    trusted: list[str] = option([], "folders outside `images` that links in it may lead to")
    template: str = option(
        "vicuna_v1",
        "conversation template: plain in stage 1, vicuna_v1 in stage 2; own: the chat template of the model",
    )
    system: str | None = option(None, "system text of every conversation; null: the template's own")
    image_aspect: Literal["pad", "square"] = option("pad", "pad to a square, or resize and centre-crop as CLIP does")
    max_length: int = option(2048, "tokens per sample, image placeholders included; longer samples are cut")
    group_by_modality_length: bool = option(False, "batches of one modality and similar length")
    length_pool: int = option(1, "steps whose samples are sorted by length together; 1: LLaVA's order, more pads less")
    bad_sample_limit: float = option(0.001, "share of the records that may be bad and replaced; one more ends the run")
    workers: int = option(4, "data loading processes per rank; 0: in the training process")


@dataclass(kw_only=True)
class OptimizerArguments:
    """AdamW, its parameter groups and its schedule."""

    global_batch: int = option(128, "samples per optimiser step over all ranks; kept whatever the number of ranks")
    per_device_batch: int = option(16, "samples per rank and forward pass; accumulation follows from global_batch")
    epochs: float = option(1.0, "passes over the records")
    max_steps: int | None = option(None, "optimiser steps; null: from epochs")
    learning_rate: float = option(2e-5, "peak rate of everything that has no rate of its own")
    projector_lr: float | None = option(None, "peak rate of the projector; null: learning_rate")
    method_lr: float | None = option(None, "peak rate of the method's own parameters; null: learning_rate")
    weight_decay: float = option(0.0, "decoupled decay of matrices; biases and norms have none")
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = option("cosine", "shape after warm-up")
    warmup_ratio: float = option(0.03, "share of all steps over which the rate rises from 0")
    max_grad_norm: float = option(1.0, "clip the global gradient norm to this; 0: no clipping")
    adam_beta1: float = option(0.9, "AdamW beta 1")
    adam_beta2: float = option(0.999, "AdamW beta 2")
    adam_epsilon: float = option(1e-8, "AdamW epsilon")
    activation_checkpointing: bool = option(True, "recompute decoder activations in the backward pass")
    deepspeed: str | None = option(
        None, "DeepSpeed JSON, or zero2, zero3, zero3_offload of those that ship; null: plain PyTorch"
    )


@dataclass(kw_only=True)
class RunArguments:
    """Where results go, how often, and what is repeated exactly."""

    output_dir: str | None = option(None, "folder of the run; {method} stands for the method's name")
    resume: str = option("auto", "auto: newest checkpoint of output_dir, if any; none: never; or a checkpoint folder")
    accept_changes: list[str] = option(
        [], f"go on with a run although these have changed: any of {', '.join(ACCEPTED)}"
    )
    seed: int = option(42, "seed of initialisation, order and dropout")
    logging_steps: int = option(1, "optimiser steps between two log lines")
    save_steps: int = option(500, "optimiser steps between two checkpoints; 0: only the final model")
    save_total_limit: int | None = option(1, "checkpoints kept; null: all")
    max_skipped_steps: int = option(5, "end the run after so many steps in a row whose loss or gradient is not finite")
    report_to: list[str] = option(["tensorboard"], "beside metrics.jsonl: any of tensorboard, wandb")
    run_name: str | None = option(None, "name shown by wandb; null: the output folder's")


@dataclass(kw_only=True)
class TrainArguments(ModelArguments, DataArguments, OptimizerArguments, RunArguments):
    """All settings of one run."""

    @property
    def deepspeed_file(self) -> str | None:
        """The DeepSpeed JSON: one's own, or the one that ships under that name."""
        return None if self.deepspeed is None else str(shipped.find("deepspeed", self.deepspeed) or self.deepspeed)


def setting_names() -> list[str]:
    """The keys of a recipe."""
    return list(typing.get_type_hints(TrainArguments))


def load_arguments(tokens: list[str]) -> TrainArguments:
    """Read recipe files and `key=value` items into checked arguments."""
    arguments = build_arguments(read_recipe(tokens))
    check_values(arguments)
    return arguments


def build_arguments(values: dict[str, Any]) -> TrainArguments:
    """Build typed arguments from a mapping; an unknown key is an error that names the known ones.

    What describes a method is resolved: `reduction`, its settings, and other keys that only a method can have.
    """
    hints = typing.get_type_hints(TrainArguments)
    values = dict(values)
    settings = dict(values.pop(SETTINGS, {}))
    described = values.pop("reduction", None)
    typed = {key: coerce(key, value, hints[key]) for key, value in values.items() if key in hints}
    settings |= method_settings({key: value for key, value in values.items() if key not in hints}, typed, hints)
    arguments = TrainArguments(**typed)
    arguments.reduction = resolve_reduction(described, settings, arguments)
    if arguments.model is not None:
        arguments.language_model = arguments.vision_tower = arguments.projector = None
    if arguments.output_dir is not None:
        arguments.output_dir = arguments.output_dir.replace("{method}", method_name(arguments.reduction))
    return arguments


def method_settings(unknown: dict[str, Any], typed: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Keys that are no setting of training, where a method has settings of that name.

    Raises:
        RecipeError: none has.
    """
    for key in sorted(unknown):
        if not is_setting(key, typed.get("plugin")):
            raise RecipeError(not_known("key", key, sorted(known)))
    return unknown


def resolve_reduction(described: Any, settings: dict[str, Any], arguments: TrainArguments) -> dict[str, Any] | None:
    """The reduction block of a recipe; see `methods.resolve`. Settings alone act on what the model carries."""
    try:
        load_plugins(arguments.plugin)  # what the model carries may be a plugin's, too
        if described is None and not settings:
            return None
        return resolve(described, settings, None if described is not None else stored_reduction(arguments.model))
    except ReductionError as error:
        raise RecipeError(str(error)) from error


def coerce(key: str, value: Any, hint: Any) -> Any:
    """Turn a YAML value into the annotated type, or say what was expected.

    YAML reads `1e-3` as text; a number field takes it. No other conversion loses or invents information.
    """
    if isinstance(hint, types.UnionType):
        options = typing.get_args(hint)
        return None if value is None else coerce(key, value, next(o for o in options if o is not types.NoneType))
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise RecipeError(f"{key}={shown(value)}: must be one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is list:
        return read_names(key, value)
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{key}={shown(value)}: must be a mapping")
        return value
    return coerce_scalar(key, value, hint)


def coerce_scalar(key: str, value: Any, kind: type) -> Any:
    """The scalar half of `coerce`: str, int, float and bool."""
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float):
        number = read_number(value)
        if number is not None and (kind is float or number == int(number)):
            return kind(number)
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a finite number"}
    raise RecipeError(f"{key}={shown(value)}: must be {names[kind]}")


def read_number(value: Any) -> int | float | None:
    """A finite number, or the text of one; None for anything else. Whole numbers stay exact."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value if abs(value) < LARGEST else None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_values(arguments: TrainArguments) -> None:
    """Refuse values that no run can use, before anything heavy is imported."""
    check_ranges(dataclasses.asdict(arguments))
    unknown = sorted(set(arguments.report_to) - {"tensorboard", "wandb"})
    if unknown:
        raise RecipeError(f"report_to={arguments.report_to!r}: {', '.join(unknown)} is not one of tensorboard, wandb")
    unknown = sorted(set(arguments.accept_changes) - set(ACCEPTED))
    if unknown:
        raise RecipeError(f"accept_changes={','.join(unknown)}: must be any of {', '.join(ACCEPTED)}")
    if arguments.quantization != "none" and (arguments.stage != "lora" or arguments.deepspeed is not None):
        given = f"stage={arguments.stage}, deepspeed={arguments.deepspeed}"
        raise RecipeError(f"quantization={arguments.quantization} is for stage=lora with deepspeed=null, got {given}")
    if arguments.objective == "regions" and (arguments.stage != "projector" or arguments.reduction):
        given = f"stage={arguments.stage}, method={method_name(arguments.reduction)}"
        raise RecipeError(
            f"objective=regions trains the projector on all patches: stage=projector, method=none, not {given}"
        )
    if arguments.packing == "turns" and (
        arguments.objective != "answers" or arguments.attention == "flash_attention_2"
    ):
        given = f"objective={arguments.objective}, attention={arguments.attention}"
        raise RecipeError(f"packing=turns needs objective=answers and attention=sdpa or eager, not {given}")
    accumulation_steps(arguments, world_size=1)


def accumulation_steps(arguments: TrainArguments, world_size: int) -> int:
    """Micro-batches per optimiser step, so that `global_batch` holds for any number of ranks."""
    per_pass = arguments.per_device_batch * world_size
    steps, rest = divmod(arguments.global_batch, per_pass)
    if rest or steps == 0:
        raise RecipeError(
            f"global_batch={arguments.global_batch} is not a multiple of per_device_batch={arguments.per_device_batch} "
            f"x {world_size} rank{'s' * (world_size > 1)}; change one of them"
        )
    return steps


def describe_arguments() -> str:
    """One line per setting, by section, for `--help`."""
    lines: list[str] = []
    hints = typing.get_type_hints(TrainArguments)
    for section in TrainArguments.__mro__[1:-1]:
        lines.append(f"\n{(section.__doc__ or '').splitlines()[0]}")
        for item in dataclasses.fields(section):
            default = item.default_factory() if item.default is dataclasses.MISSING else item.default
            default = "null" if default is None else default
            choices = typing.get_args(hints[item.name]) if typing.get_origin(hints[item.name]) is Literal else ()
            choice = f"; one of {', '.join(choices)}" if choices else ""
            lines.append(f"  {item.name:<26}{item.metadata['help']}{choice} (default: {default})")
    return "\n".join(lines)
