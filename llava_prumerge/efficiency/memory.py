"""Memory per GPU: weights, key-value cache and activations of inference; gradients and optimiser states of training.

    python -m llava_prumerge.efficiency memory --tokens 144 --batch 8 --answer 128
    python -m llava_prumerge.efficiency memory --train lora --zero 3 --gpus 8 --batch 16 --tokens 144

Weights, cache and states are exact sums; activations are what an implementation in plain PyTorch holds at its fullest
moment, without the allocator's fragments, the CUDA context or communication buffers. GB are 1e9 bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.options import add_layout, columns, counts_of, positive, shape_of
from llava_prumerge.efficiency.shapes import LanguageShape, ModelShape, VisionShape
from llava_prumerge.efficiency.tokens import TokenCounts, constant_counts
from llava_prumerge.ground.command import Parser

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
"""Per weight of the decoder's matrices. Quantised, the rest of the model, its activations and its cache stay at 2."""
STAGES = ("method", "projector", "lora", "full")
ADAM = 12
"""Bytes per trained parameter of Adam in mixed precision: float32 copy and two moments (ZeRO, arXiv 1910.02054)."""
PROMPT = 1472
"""Text of a training sample where none is given: the recipes' 2048 less the image's 576 placeholders."""


def cache_bytes(shape: LanguageShape, counts: TokenCounts, answer: int = 0, width: float = 2) -> float:
    """Keys and values of one sequence: of each layer's tokens, and of the answer's."""
    return 2 * shape.kv_width * width * sum(tokens + answer for tokens in counts.lengths)


def lora_parameters(shape: LanguageShape, rank: int) -> int:
    """Of adapters on all linear layers of the decoder, which the recipes train."""
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in shape.linear)


def weight_bytes(shape: ModelShape, precision: str) -> dict[str, float]:
    """Weights by part; quantised are the matrices of the decoder's layers alone."""
    language, quantised = shape.language, BYTES[precision] < 2
    rest = 2.0 if quantised else BYTES[precision]
    matrices = language.layers * sum(inputs * outputs for inputs, outputs in language.linear)
    return {
        "vision tower": rest * shape.vision.parameters,
        "projector": rest * shape.projector_parameters,
        "language model": BYTES[precision] * matrices + rest * (language.parameters - matrices),
    }


def layer_peak(shape: LanguageShape, tokens: int, fused: bool) -> int:
    """Numbers alive at once inside a layer that keeps nothing for a backward pass.

    The residual stream beside the widest step: attention (normed input, query, key, value, and without a fused kernel
    the scores before and after the softmax) or FFN (normed input, gate, its SiLU, up).
    """
    attention = tokens * (shape.hidden + shape.attention_width + 2 * shape.kv_width)
    scores = 0 if fused else 2 * shape.heads * tokens**2
    return tokens * shape.hidden + max(attention + scores, tokens * (shape.hidden + 3 * shape.intermediate))


def tower_peak(shape: VisionShape, patches: int, fused: bool) -> int:
    """The same for a block of the vision tower."""
    tokens = patches + 1 if shape.cut is None else shape.cut.patches + shape.cut.prefix  # one tile at a time at least
    scores = 0 if fused else 2 * shape.heads * tokens**2
    return tokens * shape.width + max(
        4 * tokens * shape.width + scores, tokens * (shape.width + 2 * shape.intermediate)
    )


def saved_by_layer(shape: LanguageShape, tokens: int, fused: bool) -> int:
    """Numbers one layer keeps for its backward pass, for one sequence.

    Inputs of both norms and of the matrices behind them (4d), query and attention's result (2a), key and value (2k),
    gate, its SiLU, up, and their product (4m); without a fused kernel the softmax (Hn^2).
    """
    row = 4 * shape.hidden + 2 * shape.attention_width + 2 * shape.kv_width + 4 * shape.intermediate
    return tokens * row + (0 if fused else shape.heads * tokens**2)


def inference(
    shape: ModelShape, counts: TokenCounts, precision: str = "fp16", batch: int = 1, answer: int = 0, fused: bool = True
) -> dict[str, float]:
    """Bytes by part on one GPU that holds the whole model.

    Args:
        shape: of the model.
        counts: tokens of each sequence.
        precision: of the decoder's matrices, see `BYTES`.
        batch: sequences, each with one image.
        answer: tokens in the cache beside the prompt.
        fused: attention never writes its scores.
    """
    width = 4.0 if precision == "fp32" else 2.0
    language = shape.language
    layers = max(layer_peak(language, tokens, fused) for tokens in counts.lengths)
    peak = batch * width * max(layers, tower_peak(shape.vision, counts.tower, fused))
    return {
        **weight_bytes(shape, precision),
        "key-value cache": batch * cache_bytes(language, counts, answer, width),
        "activations": peak + 4 * batch * language.vocabulary,
    }


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        stage: "method" (its own weights, which are few and not counted), "projector", "lora" (adapters and projector) or
            "full" (decoder and projector); the tower stays frozen.
        zero: DeepSpeed's stage: 1 shards optimiser states, 2 gradients too, 3 weights too; 0 none.
        gpus: over which it is sharded.
        batch: sequences per GPU.
        rank: of LoRA.
        checkpointing: each layer keeps its input alone and runs again in the backward pass.
        offload: optimiser states, and at stage 3 weights, lie in the host's memory.
        fused: attention never writes its scores.
    """

    stage: str = "full"
    zero: int = 0
    gpus: int = 1
    batch: int = 1
    rank: int = 128
    checkpointing: bool = True
    offload: bool = False
    fused: bool = True

    def trained(self, shape: ModelShape) -> int:
        """Parameters that have gradients."""
        if self.stage == "method":
            return 0
        own = {"projector": 0, "lora": lora_parameters(shape.language, self.rank), "full": shape.language.parameters}
        return shape.projector_parameters + own[self.stage]


def training(shape: ModelShape, counts: TokenCounts, how: Training) -> dict[str, float]:
    """Bytes by part on each GPU, in 16-bit mixed precision with Adam: 2 per weight, 2 per gradient, 12 of states.

    At stage 3 the layer at work and the one fetched ahead are whole on every GPU. Gradients of one layer are whole
    before they are sharded. What is offloaded is counted in "host, per GPU", which is no GPU memory.
    """
    language, trained = shape.language, how.trained(shape)
    total = shape.parameters + (lora_parameters(language, how.rank) if how.stage == "lora" else 0)

    def share(stage: int) -> float:
        return 1 / how.gpus if how.zero >= stage else 1.0

    layer = 2.0 * language.layer_parameters
    weights, gradients, states = 2 * total * share(3), 2 * trained * share(2), ADAM * trained * share(1)
    host = (states + (weights if how.zero == 3 else 0)) if how.offload else 0.0
    found = {
        "weights": 0.0 if how.offload and how.zero == 3 else weights,
        "layers gathered": 2 * layer if how.zero == 3 else 0.0,
        "gradients": gradients + (2.0 * trained / language.layers if how.zero >= 2 else 0.0),
        "optimiser": 0.0 if how.offload else states,
        "activations": how.batch * _training_activations(shape, counts, how),
    }
    return {**found, "host, per GPU": host}


def _training_activations(shape: ModelShape, counts: TokenCounts, how: Training) -> float:
    """Bytes of one sequence at the beginning of the backward pass, or while a layer is computed again."""
    language = shape.language
    saved = [2.0 * saved_by_layer(language, tokens, how.fused) for tokens in counts.lengths]
    inputs = [2.0 * tokens * language.hidden for tokens in counts.lengths]
    kept = sum(inputs) + max(saved) if how.checkpointing else sum(saved)
    # 16-bit logits, their float32 copy and its gradient
    logits = (2 + 4 + 4) * language.vocabulary * counts.lengths[-1]
    projected = 2.0 * counts.projected * (shape.vision.width + 2 * language.hidden)
    tower = 2.0 * tower_peak(shape.vision, counts.tower, how.fused)  # frozen: gone before the decoder's begin
    return max(kept + logits + projected, tower)


def add_arguments(parser: Parser) -> None:
    """The command's options."""
    add_layout(parser)
    parser.set_defaults(text=None)
    parser.add_argument("--dtype", help=f"inference: {', '.join(BYTES)} (default: fp16)")
    parser.add_argument("--batch", type=int, default=1, help="sequences per GPU (default: %(default)s)")
    parser.add_argument("--answer", type=int, help="inference: tokens of the answer in the cache (default: 0)")
    parser.add_argument("--eager", action="store_true", help="attention that writes its scores")
    parser.add_argument("--train", metavar="STAGE", help=f"training of: {', '.join(STAGES)}")
    parser.add_argument("--zero", type=int, help="training: DeepSpeed's ZeRO stage, 0 to 3 (default: 0)")
    parser.add_argument("--gpus", type=int, help="training: sharded over so many (default: 1)")
    parser.add_argument("--rank", type=int, help="training: of LoRA (default: 128)")
    parser.add_argument("--no-checkpointing", action="store_true", help="training: keep all activations")
    parser.add_argument("--offload", action="store_true", help="training: to the host, as zero3_offload.json")


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    shape = shape_of(given)
    positive(given.batch, "--batch")
    if given.train is None:
        return _run_inference(given, shape)
    if given.train not in STAGES:
        raise EfficiencyError(f"--train {given.train!r} is not known; there are: {', '.join(STAGES)}")
    for option in ("dtype", "answer"):
        if getattr(given, option) is not None:
            raise EfficiencyError(
                f"--{option} is for inference; training is in 16-bit mixed precision and without a cache"
            )
    zero = 0 if given.zero is None else given.zero
    if zero not in range(4):
        raise EfficiencyError(f"--zero {zero} is not one of 0, 1, 2, 3")
    if given.offload and not zero:
        raise EfficiencyError("--offload needs --zero 1, 2 or 3")
    given.text = PROMPT if given.text is None else given.text
    how = Training(
        given.train,
        zero,
        positive(1 if given.gpus is None else given.gpus, "--gpus"),
        given.batch,
        positive(128 if given.rank is None else given.rank, "--rank"),
        not given.no_checkpointing,
        given.offload,
        not given.eager,
    )
    counts = counts_of(given, shape)
    full = constant_counts(shape, None, counts.text)
    trained, total = how.trained(shape) / 1e6, shape.parameters / 1e6
    kept, attention = ("kept", "checkpointed")[how.checkpointing], ("not fused", "fused")[how.fused]
    notes = [
        f"training ({how.stage}): {trained:,.1f} M parameters; the model has {total:,.1f} M",
        f"ZeRO-{how.zero} over {how.gpus}, batch {how.batch} per GPU, activations {kept}, attention {attention}",
    ]
    return _told(given, shape, counts, training(shape, counts, how), training(shape, full, how), notes)


def _run_inference(given: argparse.Namespace, shape: ModelShape) -> str:
    for option in ("zero", "gpus", "rank"):
        if getattr(given, option) is not None:
            raise EfficiencyError(f"--{option} is for training; name what is trained with --train")
    if given.offload or given.no_checkpointing:
        raise EfficiencyError("--offload and --no-checkpointing are for training; name what is trained with --train")
    precision, answer = given.dtype or "fp16", given.answer or 0
    if precision not in BYTES:
        raise EfficiencyError(f"--dtype {precision!r} is not known; there are: {', '.join(BYTES)}")
    if answer < 0:
        raise EfficiencyError(f"--answer {answer} is not a number of at least 0 tokens")
    given.text = 40 if given.text is None else given.text
    counts = counts_of(given, shape)
    full = constant_counts(shape, None, counts.text)
    reduced, whole = (
        inference(shape, item, precision, given.batch, answer, not given.eager) for item in (counts, full)
    )
    attention = "not fused" if given.eager else "fused"
    return _told(
        given,
        shape,
        counts,
        reduced,
        whole,
        [f"inference, {precision}, batch {given.batch}, answer {answer}, attention {attention}"],
    )


def _told(
    given: argparse.Namespace,
    shape: ModelShape,
    counts: TokenCounts,
    reduced: dict[str, float],
    full: dict[str, float],
    notes: list[str],
) -> str:
    """Both columns as a table, or as JSON in bytes."""
    if given.json:
        told = {"model": shape.name, "text": counts.text, "visual": counts.visual, "bytes": reduced, "bytes_full": full}
        return json.dumps(told)
    patches = shape.vision.patches
    rows = [("GB per GPU", "reduced", f"all {patches}", "share")]
    for part in reduced:
        if part != "host, per GPU":
            rows.append((part, *_pair(reduced[part], full[part])))
    sums = [sum(value for part, value in column.items() if part != "host, per GPU") for column in (reduced, full)]
    rows.append(("sum", *_pair(*sums)))
    if reduced.get("host, per GPU"):
        rows.append(("host, per GPU", *_pair(reduced["host, per GPU"], full["host, per GPU"])))
    title = f"{shape.name}: {counts.told(patches)}"
    return "\n".join([title, *notes, "", columns(rows)])


def _pair(reduced: float, full: float) -> tuple[str, str, str]:
    digits = 2 if full >= 1e9 else 4
    share = f"{100 * reduced / full:.1f}%" if full else ""
    return f"{reduced / 1e9:.{digits}f}", f"{full / 1e9:.{digits}f}", share
