"""What a run would cost before it starts: tokens of a step with and without reduction, and memory per GPU by ZeRO stage and GPU count.

Memory is `llava_prumerge.efficiency.memory`'s sum for the longest sample the recipe admits, and shares its limits (docs/efficiency.md).
"""

from __future__ import annotations

import tempfile
from typing import Any

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.efficiency.memory import Training, training
from llava_prumerge.efficiency.options import columns
from llava_prumerge.efficiency.shapes import ModelShape, model_shape
from llava_prumerge.efficiency.tokens import TokenCounts, constant_counts, reduction_counts
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.settings import uses_bf16

GPU_COUNTS = (1, 2, 4, 8, 16, 32)
PLAIN = "no DeepSpeed"
BACKENDS: dict[str, tuple[int, bool]] = {
    PLAIN: (0, False),
    "ZeRO-2": (2, False),
    "ZeRO-3": (3, False),
    "ZeRO-3, offload": (3, True),
}


def shape_of(config: PruMergeLlavaConfig) -> ModelShape:
    """The sizes that costs are computed from."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return model_shape(folder)


def kept_tokens(arguments: TrainArguments, config: PruMergeLlavaConfig, shape: ModelShape) -> TokenCounts:
    """What the run's method leaves of an image while it trains, as far as it is known before the images are seen.

    Beside it stands the longest text the recipe admits.
    """
    text = max(arguments.max_length - shape.vision.patches, 1)
    block: Any = config.reduction or {}
    return reduction_counts(shape, block, text, training=True)


def read_backend(arguments: TrainArguments) -> str:
    """Which of `BACKENDS` the recipe's DeepSpeed file is.

    Raises:
        RecipeError: it cannot be read, or names a stage that is not among them.
    """
    if arguments.deepspeed is None:
        return PLAIN
    try:
        zero = read_json_object(str(arguments.deepspeed_file)).get("zero_optimization", {})
        found = (int(zero.get("stage", 0)), zero.get("offload_optimizer", {}).get("device", "none") != "none")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"deepspeed={arguments.deepspeed}: cannot be read: {' '.join(str(error).split())}") from error
    named = {value: name for name, value in BACKENDS.items()}
    if found not in named:
        raise RecipeError(f"deepspeed={arguments.deepspeed}: ZeRO stage {found[0]}; planned are {', '.join(BACKENDS)}")
    return named[found]


def gigabytes(arguments: TrainArguments, shape: ModelShape, counts: TokenCounts, backend: str, gpus: int) -> float:
    """Memory of each GPU. Without DeepSpeed weights and gradients are float32, and several GPUs hold gradients twice."""
    zero, offload = BACKENDS[backend]
    how = Training(
        arguments.stage,
        zero,
        gpus,
        arguments.per_device_batch,
        arguments.lora_rank,
        arguments.activation_checkpointing,
        offload,
        arguments.attention != "eager",
    )
    parts = training(shape, counts, how)
    parts.pop("host, per GPU")
    if backend == PLAIN:
        trained = how.trained(shape)
        parts["weights"] *= 2  # float32; the sum counted 16 bits
        parts["gradients"] = 4.0 * trained * (2 if gpus > 1 else 1)
        parts["optimiser"] = 8.0 * trained
        if arguments.quantization == "nf4":
            language = shape.language
            matrices = language.layers * sum(inputs * outputs for inputs, outputs in language.linear)
            parts["weights"] -= (4 - 0.5) * matrices
    if not uses_bf16(arguments):
        parts["activations"] *= 2
    return sum(parts.values()) / 1e9


def describe_memory(arguments: TrainArguments, shape: ModelShape, kept: TokenCounts) -> list[str]:
    """A table: ZeRO stage by GPU count, the recipe's own marked; without reduction in brackets."""
    own = read_backend(arguments)
    full = constant_counts(shape, None, kept.text)
    header = ["GPUs", *(str(gpus) for gpus in GPU_COUNTS)]
    rows = [header]
    for backend in BACKENDS if arguments.quantization == "none" else (PLAIN,):
        row = [f"{backend}{' <- this recipe' if backend == own else ''}"]
        for gpus in GPU_COUNTS:
            reduced, whole = (gigabytes(arguments, shape, counts, backend, gpus) for counts in (kept, full))
            digits = 1 if whole >= 1 else 3
            row.append(f"{reduced:.{digits}f} ({whole:.{digits}f})")
        rows.append(row)
    steps = [divmod(arguments.global_batch, arguments.per_device_batch * gpus) for gpus in GPU_COUNTS]
    rows.append(["accumulation", *("-" if rest or not count else str(count) for count, rest in steps)])
    title = (
        f"GB per GPU, {arguments.per_device_batch} samples of {arguments.max_length} tokens each; in brackets without "
        "reduction (estimate, without CUDA context, fragments and buffers)"
    )
    return [title, *(f"  {line}" for line in columns(rows).splitlines())]
