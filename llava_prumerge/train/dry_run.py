"""What a run would do: parameter groups, records, steps, tokens, memory. Shown by `--dry-run`, without training anything.

What the recipe names and is not here yet is taken by its published name, and the plan says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Trainer

from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.methods.labels import method_name
from llava_prumerge.model.assembling import processor_of
from llava_prumerge.model.attach import own_class, stock_class_of
from llava_prumerge.model.configuration import PruMergeLlavaConfig, with_reduction
from llava_prumerge.model.parts import assembled_config, input_side, load_image_processor, read_tower_config
from llava_prumerge.model.processors import make_processor, read_tokenizer
from llava_prumerge.model.strict_loading import read_config
from llava_prumerge.text.hub_files import folder_of, is_offline
from llava_prumerge.train.arguments import TrainArguments, accumulation_steps
from llava_prumerge.train.assembly import build_dataset
from llava_prumerge.train.estimate import describe_memory, kept_tokens, shape_of
from llava_prumerge.train.preflight import missing_inputs
from llava_prumerge.train.published import PUBLISHED, RECORDS, published_config
from llava_prumerge.train.stages import count_parameters, format_count, parameter_groups, prepare_stage

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlavaProcessor

    from llava_prumerge.data.quarantine import QuarantiningDataset
    from llava_prumerge.efficiency.shapes import ModelShape
    from llava_prumerge.efficiency.tokens import TokenCounts

SAMPLED_RECORDS = 32


@dataclass(frozen=True)
class Sampled:
    """What the records are like.

    Attributes:
        total: how many; None where that is not known.
        tokens: of a sample, all placeholders included, on average.
        images: of a sample, on average.
        lines: the same for people.
        visual: placeholders of a sample, on average; None where no sample was read.
    """

    total: int | None
    tokens: float
    images: float
    lines: list[str]
    visual: float | None = None


def describe_run(arguments: TrainArguments, world_size: int) -> str:
    """The plan as text, from configurations alone: a 7B model takes no longer than a small one.

    Raises:
        RecipeError: something is missing that no published name stands for.
    """
    missing = missing_inputs(arguments)
    for key in [key for key, path in missing.items() if path is not None and is_hub_name(path)]:
        if (
            Path(str(missing[key])).name not in PUBLISHED[key] and not is_offline()
        ):  # its configuration says what no name does
            folder_of(str(missing.pop(key)), f"{key}=")
    parts = {"model", "language_model", "vision_tower"} & missing.keys()
    config, processor = (published_config(arguments), None) if parts else read_configuration(arguments)
    with torch.device("meta"):
        model = prepare_stage(own_class(stock_class_of(config))(config), arguments)
    shape = shape_of(config)
    kept = kept_tokens(arguments, config, shape)
    unread = processor is None or {"data", "images"} & missing.keys()
    sampled = (
        guess_records(arguments) if unread else sample_records(arguments, build_dataset(arguments, config, processor))
    )
    lines = [*describe_groups(arguments, model), *sampled.lines, *describe_tokens(arguments, sampled, kept, shape)]
    lines += [*describe_schedule(arguments, sampled.total, world_size), *describe_memory(arguments, shape, kept)]
    if missing:
        listed = ", ".join(f"{key}={path}" for key, path in missing.items())
        lines.append(f"not here yet: {listed}; shapes and counts above are those published under these names")
    return "\n".join([*lines, f"output {arguments.output_dir}"])


def read_configuration(arguments: TrainArguments) -> tuple[PruMergeLlavaConfig, LlavaProcessor]:
    """What the start of the run will be configured as."""
    if arguments.model is not None:
        folder = folder_of(arguments.model, "model=")
        config = read_config(folder)
        stored = getattr(config, "reduction", None)
        reduction = stored if arguments.reduction is None else arguments.reduction
        return with_reduction(config, reduction), processor_of(folder, config)
    language, tower = (folder_of(str(getattr(arguments, key)), f"{key}=") for key in ("language_model", "vision_tower"))
    tokenizer = read_tokenizer(language)
    text, vision = read_config(language), read_tower_config(tower)
    image_processor = load_image_processor(tower)
    config = assembled_config(text, vision, tokenizer, arguments.reduction, input_side(image_processor))
    return config, make_processor(tokenizer, image_processor, config)


def count_steps(arguments: TrainArguments, records: int | None) -> int | None:
    """Optimiser steps of the run; None where they follow from records that are not here."""
    if arguments.max_steps is None and records is None:
        return None
    return arguments.max_steps or math.ceil(arguments.epochs * math.ceil(records / arguments.global_batch))


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


def sample_records(arguments: TrainArguments, dataset: QuarantiningDataset) -> Sampled:
    """What it trains on, from records spread evenly over the file."""
    with_images = sum(length > 0 for length in dataset.lengths)
    count = min(SAMPLED_RECORDS, len(dataset))
    picked = [dataset[index * len(dataset) // count] for index in range(count)]
    tokens = sum(len(item["input_ids"]) for item in picked) / count
    carries = sum(
        int((item["labels"] != -100).sum()) if "labels" in item else dataset.dataset.image_tokens for item in picked
    )
    answers = carries / count * arguments.global_batch
    images = sum(dataset.dataset.rows[index * len(dataset) // count]["images"] for index in range(count)) / count
    marks = [token for token in (dataset.dataset.image_token_id, dataset.dataset.video_token_id) if token is not None]
    visual = sum(int((item["input_ids"] == token).sum()) for item in picked for token in marks) / count
    what = "images or videos" if any(dataset.dataset.rows["videos"]) else "images"
    return Sampled(
        len(dataset),
        tokens,
        images,
        [
            f"records {len(dataset)} in {arguments.data}: {with_images} with {what}, {len(dataset) - with_images} text only",
            f"tokens of {count} of them: {tokens:,.0f} on average; {format_count(answers)} per step carry loss"
            + " (patches)" * (arguments.objective == "regions"),
        ],
        visual,
    )


def guess_records(arguments: TrainArguments) -> Sampled:
    """What is known of a record file that is not here: LLaVA's numbers of records, and no sample longer than `max_length`."""
    known = RECORDS.get(Path(str(arguments.data)).name)
    told = "number unknown" if known is None else f"{known.total:,}, {known.text_only:,} of them text only"
    images = 1.0 if known is None else 1 - known.text_only / known.total
    return Sampled(
        None if known is None else known.total,
        arguments.max_length,
        images,
        [f"records {told}: {arguments.data}, not read; every sample is taken to be as long as max_length allows"],
    )


def describe_tokens(arguments: TrainArguments, sampled: Sampled, kept: TokenCounts, shape: ModelShape) -> list[str]:
    """Tokens of a step before and after reduction, and of an image."""
    patches, equivalent = shape.vision.patches, kept.equivalent
    before = sampled.tokens * arguments.global_batch
    visual = sampled.images * patches if sampled.visual is None else sampled.visual
    after = before - visual * (1 - equivalent / patches) * arguments.global_batch
    return [
        f"tokens per step about {format_count(before)} before reduction, {format_count(after)} after it; "
        f"per image {patches} and {equivalent:g} ({kept.source})"
    ]


def describe_schedule(arguments: TrainArguments, records: int | None, world_size: int) -> list[str]:
    """For how long, and how."""
    steps, accumulation = count_steps(arguments, records), accumulation_steps(arguments, world_size)
    warmup = "unknown" if steps is None else math.ceil(steps * arguments.warmup_ratio)
    steps = "unknown" if steps is None else steps
    clipping = f"clipped at {arguments.max_grad_norm:g}" if arguments.max_grad_norm else "not clipped"
    checkpointing = "activation checkpointing" if arguments.activation_checkpointing else "no activation checkpointing"
    return [
        f"steps {steps}: batch {arguments.global_batch} = {arguments.per_device_batch} x {world_size} ranks "
        f"x {accumulation} accumulation; {arguments.scheduler}, {warmup} warm-up steps",
        f"gradients {clipping}; {arguments.precision}; {arguments.deepspeed or 'no DeepSpeed'}; {checkpointing}",
    ]
