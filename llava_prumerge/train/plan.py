"""What a run would do: parameter groups, records, steps, tokens. Shown by `--dry-run`, without training anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoTokenizer, Trainer

from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.loading import load_processor, make_processor
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.parts import add_special_tokens, assembled_config, load_image_processor, read_tower_config
from llava_prumerge.train.arguments import TrainArguments, accumulation_steps, method_name
from llava_prumerge.train.assembly import build_dataset
from llava_prumerge.train.stages import count_parameters, format_count, parameter_groups, prepare_stage

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlavaProcessor

    from llava_prumerge.data.quarantine import QuarantiningDataset

SAMPLED_RECORDS = 32


def make_plan(arguments: TrainArguments, world_size: int) -> str:
    """The plan as text, from configurations alone: a 7B model takes no longer than a small one."""
    config, processor = read_configuration(arguments)
    with torch.device("meta"):
        model = prepare_stage(PruMergeLlavaForConditionalGeneration(config), arguments)
    dataset = build_dataset(arguments, config, processor)
    return describe_plan(arguments, model, dataset, world_size)


def read_configuration(arguments: TrainArguments) -> tuple[PruMergeLlavaConfig, LlavaProcessor]:
    """What the start of the run will be configured as."""
    if arguments.model is not None:
        config = AutoConfig.from_pretrained(arguments.model)
        stored = getattr(config, "reduction", None)
        reduction = stored if arguments.reduction is None else arguments.reduction
        return PruMergeLlavaConfig.from_llava(config, reduction), load_processor(arguments.model, config)
    tokenizer = AutoTokenizer.from_pretrained(arguments.language_model)
    add_special_tokens(tokenizer)
    text, vision = AutoConfig.from_pretrained(arguments.language_model), read_tower_config(arguments.vision_tower)
    config = assembled_config(text, vision, tokenizer, arguments.reduction)
    return config, make_processor(tokenizer, load_image_processor(arguments.vision_tower), config)


def count_steps(arguments: TrainArguments, records: int) -> int:
    """Optimiser steps of the run."""
    return arguments.max_steps or math.ceil(arguments.epochs * math.ceil(records / arguments.global_batch))


def describe_plan(arguments: TrainArguments, model: nn.Module, dataset: QuarantiningDataset, world_size: int) -> str:
    """Several lines for people."""
    lines = [*describe_groups(arguments, model), *describe_records(arguments, dataset)]
    lines += describe_schedule(arguments, len(dataset), world_size)
    return "\n".join([*lines, f"output {arguments.output_dir}"])


def describe_groups(arguments: TrainArguments, model: nn.Module) -> list[str]:
    """What trains, at which peak rate."""
    groups = parameter_groups(model, set(Trainer.get_decay_parameter_names(None, model)), arguments)
    counts = [count_parameters(group["params"]) for group in groups]
    total = count_parameters(list(model.parameters()))
    lines = [
        f"stage {arguments.stage}, method {method_name(arguments.reduction)}: "
        f"{format_count(sum(counts))} of {format_count(total)} parameters train"
    ]
    for group, count in zip(groups, counts, strict=True):
        tensors = f"{format_count(count):>8} in {len(group['params'])} tensors"
        lines.append(f"  {group['name']:<20} {tensors}, lr {group['lr']:.1e}, weight decay {group['weight_decay']:g}")
    return lines


def describe_records(arguments: TrainArguments, dataset: QuarantiningDataset) -> list[str]:
    """What it trains on, and the tokens of one step, from records spread evenly over the file."""
    with_images = sum(length > 0 for length in dataset.lengths)
    count = min(SAMPLED_RECORDS, len(dataset))
    picked = [dataset[index * len(dataset) // count] for index in range(count)]
    tokens = sum(len(item["input_ids"]) for item in picked) / count * arguments.global_batch
    answers = sum(int((item["labels"] != -100).sum()) for item in picked) / count * arguments.global_batch
    return [
        f"records {len(dataset)} in {arguments.data}: {with_images} with images, {len(dataset) - with_images} text only",
        f"tokens per step about {format_count(tokens)} before reduction, {format_count(answers)} of them carry loss "
        f"(from {count} records)",
    ]


def describe_schedule(arguments: TrainArguments, records: int, world_size: int) -> list[str]:
    """For how long, and how."""
    steps, accumulation = count_steps(arguments, records), accumulation_steps(arguments, world_size)
    clipping = f"clipped at {arguments.max_grad_norm:g}" if arguments.max_grad_norm else "not clipped"
    checkpointing = "activation checkpointing" if arguments.activation_checkpointing else "no activation checkpointing"
    return [
        f"steps {steps}: batch {arguments.global_batch} = {arguments.per_device_batch} x {world_size} ranks "
        f"x {accumulation} accumulation; {arguments.scheduler}, {math.ceil(steps * arguments.warmup_ratio)} warm-up steps",
        f"gradients {clipping}; {arguments.precision}; {arguments.deepspeed or 'no DeepSpeed'}; {checkpointing}",
    ]
