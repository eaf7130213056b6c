"""Time of a pruner's own work as a share of the decoder layer it stands before.

    python -m llava_prumerge.profiling.pruner [--methods METHOD ...] [--models llava-1.5-7b pocket] [--batch 1 64]

Its own work is all that happens between two layers: scores, choice, compaction of everything on the sequence axis, and the
new mask and rotary angles. The layer it is compared with is the one before, which has run on just the tokens that the
pruner was given, in the same forward pass. Times are CPU time, which other processes do not lengthen. Weights are
random, in float32; of a large decoder as many layers as every method needs to act at its defaults. The prompt is an
image and 64 tokens of text, and the cache is on. The last line is one JSON object.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.options import finish
from llava_prumerge.efficiency.shapes import ModelShape, model_shape
from llava_prumerge.ground.command import Parser, at_least, command
from llava_prumerge.methods.base import DecoderPruner, DecoderShape
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.registry import build_pruner, method_names
from llava_prumerge.methods.resolve import resolve_part
from llava_prumerge.profiling.machine import result_of_shares
from llava_prumerge.profiling.random_model import check_shape
from llava_prumerge.profiling.timing import ratios, spread, spread_text

LAYERS = 4
"""The first depth at which every method can act by its defaults."""
DEEP = 1_000_000_000  # parameters in the layers: a decoder with more is built with LAYERS of its layers alone
TEXT_BEFORE, TEXT_AFTER = 40, 24
SMALL_BATCH = 64
"""As the pocket model is evaluated; one prompt alone would measure the calls of tensor operations, not their work."""
TARGET_PERCENT = 10.0
IMAGE_TOKEN = 15

Times = dict[int, list[float]]
"""Layer -> seconds of each repeat."""


def is_deep(shape: ModelShape) -> bool:
    """Whether the whole decoder would be too much."""
    return shape.language.layers * shape.language.layer_parameters > DEEP


def build_model(shape: ModelShape) -> nn.Module:
    """A LLaVA whose decoder has the shape, random weights, with the smallest tower that gives as many patches."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    import llava_prumerge

    llava_prumerge.register()
    language, side = shape.language, shape.vision.side
    depth = LAYERS if is_deep(shape) else language.layers
    text = {"model_type": "llama", **language.as_config(), "vocab_size": IMAGE_TOKEN + 1, "num_hidden_layers": depth}
    vision = dict(model_type="clip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=2)
    vision |= dict(num_attention_heads=1, image_size=2 * side, patch_size=2, projection_dim=8)
    places = dict(image_token_index=IMAGE_TOKEN, image_seq_length=shape.vision.patches)
    config = AutoConfig.for_model("prumerge_llava", text_config=text, vision_config=vision, **places)
    return AutoModelForImageTextToText.from_config(config).eval()


def make_prompt(shape: ModelShape, batch: int) -> dict[str, torch.Tensor]:
    """Text, an image, text; all rows alike."""
    ids = torch.full((batch, TEXT_BEFORE + shape.vision.patches + TEXT_AFTER), IMAGE_TOKEN)
    generator = torch.Generator().manual_seed(0)
    for part in (ids[:, :TEXT_BEFORE], ids[:, -TEXT_AFTER:]):
        part.copy_(torch.randint(3, IMAGE_TOKEN, part.shape, generator=generator))
    pixels = torch.randn(batch, 3, 2 * shape.vision.side, 2 * shape.vision.side, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


class Stopwatch:
    """Notes when the layers of a decoder begin and end, and for how many tokens."""

    def __init__(self, decoder: nn.Module) -> None:
        self.layers = list(decoder.layers)
        self.begun: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.lengths: dict[int, int] = {}

    def __enter__(self) -> Stopwatch:
        self._hooks = ExitStack()
        for index, layer in enumerate(self.layers):
            self._hooks.callback(layer.register_forward_pre_hook(self._begin(index)).remove)
            self._hooks.callback(layer.register_forward_hook(self._end(index)).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _begin(self, index: int) -> Any:
        def begin(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            self.lengths[index] = arguments[0].shape[1]
            self.begun[index] = time.process_time()

        return begin

    def _end(self, index: int) -> Any:
        def end(*_: object) -> None:
            self.ended[index] = time.process_time()

        return end

    def layer(self, index: int) -> float:
        """Seconds that a layer took."""
        return self.ended[index] - self.begun[index]

    def gap(self, index: int) -> float:
        """Seconds between the layer before and this one."""
        return self.begun[index] - self.ended[index - 1]


@torch.inference_mode()
def measure(model: nn.Module, shape: ModelShape, block: dict[str, Any], batch: int, repeats: int) -> dict[str, Any]:
    """One row: the worst of the layers a method acts before.

    Raises:
        EfficiencyError: it drops nothing.
    """
    decoder, prompt = model.model.language_model, make_prompt(shape, batch)
    language = shape.language
    seen_by = DecoderShape(len(decoder.layers), language.hidden, language.heads, shape.vision.patches)
    own, layers = defaultdict(list), defaultdict(list)
    decoder.pruner = build_pruner(block, seen_by).eval()
    try:
        with Stopwatch(decoder) as watch:
            for repeat in range(repeats + 1):
                model(**prompt, use_cache=True, logits_to_keep=1)
                for at in [at for at in decoder.pruner.layers if at and watch.lengths[at] < watch.lengths[at - 1]]:
                    if repeat:  # the first warms up
                        own[at].append(watch.gap(at))
                        layers[at].append(watch.layer(at - 1))
    finally:
        decoder.pruner = None
    if not own:
        raise EfficiencyError(f"{block['name']} drops nothing in {len(decoder.layers)} layers, with {block}")
    return _row(shape, block, batch, own, layers, watch)


def _row(
    shape: ModelShape, block: dict[str, Any], batch: int, own: Times, layers: Times, watch: Stopwatch
) -> dict[str, Any]:
    """What is printed of one method: the layer before which its work is the largest share."""
    shares = {at: ratios(own[at], layers[at], 100) for at in own}
    worst = max(shares, key=lambda at: shares[at]["median"])
    return {
        "model": shape.name,
        "method": block["name"],
        "settings": {key: value for key, value in block.items() if key != "name"},
        "batch": batch,
        "before_layer": worst,
        "drops": len(own),
        "tokens": [watch.lengths[worst - 1], watch.lengths[worst]],
        "own_ms": spread(own[worst], 1e3),
        "layer_ms": spread(layers[worst], 1e3),
        "share": shares[worst],
        "share_percent": shares[worst]["median"],
    }


def blocks_of(names: list[str] | None) -> list[dict[str, Any]]:
    """Blocks of decoder pruners, described in any way; by default every pruner as it is."""
    return [resolve_part(name, "decoder") for name in names or method_names(DecoderPruner)]


def benchmark(words: list[str]) -> dict[str, Any]:
    """Measure and print. -> what is printed last"""
    parser = Parser("llava_prumerge.profiling.pruner", __doc__)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="names, files or blocks of decoder pruners")
    add_plugin_option(parser)
    parser.add_argument("--models", nargs="+", default=["llava-1.5-7b", "pocket"])
    parser.add_argument(
        "--batch", nargs="+", type=at_least(1), help=f"prompts at a time (default 1, or {SMALL_BATCH} of a small model)"
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=3, help="timed forward passes (of a small model ten times as many)"
    )
    parser.add_argument("--out", type=Path, help="also write the result to this JSON file")
    given = parser.parse_args(words)
    rows = []
    print(f"float32, CPU, {torch.get_num_threads()} threads; medians (quartiles) in ms")
    for name in given.models:
        shape = model_shape(name)
        check_shape(shape)
        torch.manual_seed(0)
        model, deep = build_model(shape), is_deep(shape)
        for batch in given.batch or [1 if deep else SMALL_BATCH]:
            for block in blocks_of(given.methods):
                repeats = given.repeats if deep else 10 * given.repeats
                row = measure(model, shape, block, batch, repeats)
                rows.append(row)
                print(
                    f"{row['model']:<13} batch {batch}  {row['method']:<14} before layer {row['before_layer']} "
                    f"({row['tokens'][0]} to {row['tokens'][1]} tokens)  {spread_text(row['own_ms'])}  of a layer's "
                    f"{spread_text(row['layer_ms'])}  = {row['share_percent']:.2f}%",
                    flush=True,
                )
    result = result_of_shares("pruner", TARGET_PERCENT, rows)
    print(finish(result, given.out))
    return result


@command()
def main(words: list[str]) -> None:
    """The command."""
    benchmark(words)


if __name__ == "__main__":
    sys.exit(main())
