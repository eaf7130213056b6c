"""What each stage trains, at which rate, and what it saves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.labels import method_name
from llava_prumerge.model.adapters import (
    ADAPTER_FILE,
    Base,
    load_lora,
    load_method,
    plain_model,
    plain_name,
)
from llava_prumerge.model.assembling import load_projector
from llava_prumerge.model.part_names import part_names
from llava_prumerge.model.processors import set_template
from llava_prumerge.model.reading import Reader, reader_of
from llava_prumerge.train.arguments import RecipeError, TrainArguments
from llava_prumerge.train.quantization import quantize_linears
from llava_prumerge.train.settings import uses_bf16

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerBase

# Linear layers of the language model, fused ones too. Bare names (q_proj, ...) would also hit the vision tower's.
LORA_TARGETS = (
    r"model\.(?:language|text)_model\.layers\.\d+\.(self_attn\.(q|k|v|o|qkv)_proj|mlp\.(gate|up|down|gate_up)_proj)"
)
ROLES = ("base", "projector", "method")


def load_start(arguments: TrainArguments) -> tuple[nn.Module, LlavaProcessor]:
    """The model a stage starts from, on CPU.

    Under DeepSpeed the weights are bf16 (DeepSpeed keeps its own float32 copy of what trains); otherwise they stay
    float32 and bf16 is a matter of autocast. Built before DeepSpeed is switched on: ZeRO-3 shards it afterwards, so
    that no part of the assembly ever meets an empty shard.
    """
    base, dtype = start_base(arguments), weights_dtype(arguments)
    try:
        model, processor = base.build(arguments.projector, arguments.reduction, dtype, arguments.attention)
    except OSError as error:  # transformers' word for folders that lack files
        raise RecipeError(" ".join(str(error).split())) from error
    template = reader_for(arguments, processor, model.config).template
    set_template(processor, template)
    end_answers(model, processor.tokenizer, template.end.strip())
    return model, processor


def reader_for(arguments: TrainArguments, processor: LlavaProcessor, config: Any) -> Reader:
    """How a run's conversations are read, with the template that they are written in.

    Raises:
        RecipeError: there is none of that name, or it does not fit the model.
    """
    try:
        return reader_of(processor, config, arguments.template, arguments.system)
    except InputError as error:
        key = "template" if arguments.system is None else f"system={arguments.system!r}, template"
        raise RecipeError(f"{key}={arguments.template}: {error}") from error


def end_answers(model: nn.Module, tokenizer: PreTrainedTokenizerBase, end: str) -> None:
    """Let generation stop at what the answers of a training end with."""
    known = model.generation_config.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    token = tokenizer.convert_tokens_to_ids(end) if end else None
    if token not in (None, tokenizer.unk_token_id, *ends):
        model.generation_config.eos_token_id = [*ends, token] if ends else token


def weights_dtype(arguments: TrainArguments) -> str:
    """What weights are stored in."""
    return "bfloat16" if arguments.deepspeed and uses_bf16(arguments) else "float32"


def start_base(arguments: TrainArguments) -> Base:
    """The frozen part of the model."""
    return Base(arguments.model, arguments.language_model, arguments.vision_tower, arguments.seed)


def prepare_stage(model: nn.Module, arguments: TrainArguments) -> nn.Module:
    """Freeze what the stage leaves alone, add adapters where it has them. -> the model to train"""
    model.config.get_text_config().use_cache = False  # of no use in training, and it fights activation checkpointing
    model.requires_grad_(False)
    if arguments.quantization == "nf4" and not is_meta(model):
        quantize_linears(model, LORA_TARGETS, torch.bfloat16 if uses_bf16(arguments) else torch.float32)
    if arguments.stage == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules=LORA_TARGETS,
            bias="none",
        )
        model = get_peft_model(model, settings)
    parts = part_names(model)
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        role = parts.role(plain)
        trains = role == "projector" and arguments.stage != "method"
        if role == "method" or trains or (role == "base" and arguments.stage == "full"):
            parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        name = method_name(arguments.reduction)
        raise RecipeError(f"stage=method: method {name} has no weights of its own that could train")
    return model


def is_meta(model: nn.Module) -> bool:
    """Whether a model has shapes alone, as a dry run's has."""
    return next(model.parameters()).is_meta


def learning_rates(arguments: TrainArguments) -> dict[str, float]:
    """Peak rate by role."""
    base = arguments.learning_rate
    return {"base": base, "projector": arguments.projector_lr or base, "method": arguments.method_lr or base}


def parameter_groups(model: nn.Module, decaying: set[str], arguments: TrainArguments) -> list[dict]:
    """AdamW's groups: role x decay, those without parameters left out.

    Args:
        decaying: names of the parameters that weight decay applies to (no biases, no norms).
    """
    rates = learning_rates(arguments)
    groups: dict[tuple[str, bool], dict] = {}
    for role in ROLES:
        for decays in (True, False):
            decay = arguments.weight_decay if decays else 0.0
            groups[role, decays] = {
                "name": f"{role}{'' if decays else ', no decay'}",
                "params": [],
                "lr": rates[role],
                "weight_decay": decay,
            }
    parts = part_names(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parts.role(plain_name(name)), name in decaying]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def set_modes(model: nn.Module) -> None:
    """Keep frozen vision towers in evaluation mode; Trainer puts the whole model into training mode at each step."""
    host = plain_model(model).model
    for name in host.tower_names:
        host.get_submodule(name).eval()


def gather_trained(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all trained parameters, and of the projector, on CPU. Every rank must call this: ZeRO-3 holds shards."""
    role = part_names(model).role
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or role(plain_name(name)) == "projector"
    }
    sharded = [parameter for parameter in trained.values() if hasattr(parameter, "ds_id")]
    context = contextlib.nullcontext()
    if sharded:
        import deepspeed

        context = deepspeed.zero.GatheredParameters(sharded)
    with context:
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items()}


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put the parts that `save_adapter` wrote back into the model in training (stages projector and lora).

    Raises:
        LoadingError: a part is missing or not whole, or does not fit.
    """
    plain = plain_model(model)
    load_projector(plain, folder)
    load_method(plain, folder, strict=True)
    if hasattr(model, "peft_config"):
        load_lora(model, folder / ADAPTER_FILE)


def count_parameters(parameters: list[Tensor]) -> int:
    """Number of values, also where ZeRO-3 holds a shard."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def format_count(count: float) -> str:
    """A count for people: 20.98M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return f"{count:g}"
