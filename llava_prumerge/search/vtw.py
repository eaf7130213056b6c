"""VTW's search: the first layer from which on visual tokens can be withdrawn without changing what the model would say.

    python -m llava_prumerge.search.vtw --model PATH --questions FILE.jsonl --images DIR [--out vtw.yaml] [--samples 20]
        [--threshold 0.003] [--first N] [--batch-size 4] [--template vicuna_v1] [--dtype float32] [--device cpu]

Visual Tokens Withdrawal, Lin et al., AAAI 2025 (arXiv 2405.05803; code lzhxmu/VTW a3d8cfc). For each K the divergence
KL(withdrawn || full) of the next-token distributions after the prompt is averaged over the samples; K is the first one,
not before layer 5 of 32, whose mean is at most the threshold (the authors' 0.003 for LLaVA-1.5-7B, 0.0005 for 13B,
0.0001 for 1.6-7B). Written is a method file for the pruner `vtw`; a vision reducer that the checkpoint names stays.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from llava_prumerge.methods.registry import build_pruner
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration, decoder_shape
from llava_prumerge.search.calibration import SearchError, make_batches, read_pairs

EARLIEST = 5 / 32
"""Layers before this fraction of the depth are not tried: the authors begin at layer 5 of 32."""


def divergence(withdrawn: Tensor, full: Tensor) -> Tensor:
    """KL(withdrawn || full) of the distributions that two sets of logits stand for, in nats. [B, V], [B, V] -> [B]"""
    ours, theirs = withdrawn.double().log_softmax(dim=-1), full.double().log_softmax(dim=-1)
    return (ours.exp() * (ours - theirs)).sum(dim=-1)


@torch.inference_mode()
def withdrawal_divergences(
    model: PruMergeLlavaForConditionalGeneration, batches: Sequence[dict[str, Tensor]], layers: Sequence[int]
) -> Tensor:
    """How much the next token's distribution changes with withdrawal before each layer. -> [samples, layers]

    Args:
        model: its own pruner is left out while this runs.
        batches: left-padded prompts with images.
        layers: the K to try.
    """
    decoder, shape = model.model.language_model, decoder_shape(model.config)
    own, device = decoder.pruner, next(model.parameters()).device
    rows = []
    try:
        for batch in tqdm(batches, desc="withdrawal", unit="batch", disable=not sys.stderr.isatty()):
            inputs = {name: value.to(device) for name, value in batch.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)

            def last_logits(layer: int | None, inputs: dict[str, Tensor] = inputs) -> Tensor:
                decoder.pruner = build_pruner(None if layer is None else {"name": "vtw", "layer": layer}, shape)
                return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]  # [B, V]

            full = last_logits(None)
            rows.append(torch.stack([divergence(last_logits(layer), full) for layer in layers], dim=1))
    finally:
        decoder.pruner = own
    return torch.cat(rows).cpu()


def choose_layer(layers: Sequence[int], means: Sequence[float], threshold: float) -> int:
    """The first layer whose mean divergence is at most the threshold.

    Raises:
        SearchError: there is none.
    """
    for layer, mean in zip(layers, means, strict=True):
        if mean <= threshold:
            return layer
    raise SearchError(
        f"no layer of {layers[0]} to {layers[-1]} has a mean KL of at most {threshold:g}; the least is "
        f"{min(means):.3g}, a larger --threshold would take it"
    )


def method_file(layer: int, reduction: dict[str, Any] | None, note: str) -> str:
    """The text of a method file that withdraws at a layer, behind the vision reducer there was."""
    block = {"vision": (reduction or {}).get("vision"), "decoder": {"name": "vtw", "layer": layer}}
    block = {site: part for site, part in block.items() if part}
    return f"# {note}\n{yaml.safe_dump(block, default_flow_style=None, sort_keys=False)}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava_prumerge.search.vtw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", type=Path, required=True, help="LLaVA's JSONL: image, text")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, default=Path("runs/search/vtw.yaml"), help="the method file to write")
    parser.add_argument("--samples", type=int, default=20, help="questions to measure on")
    parser.add_argument("--threshold", type=float, default=0.003, help="largest mean KL that counts as no change")
    parser.add_argument("--first", type=int, help="the first layer to try; 5 of 32, at that fraction of the depth")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--template", default="vicuna_v1")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device")
    return parser.parse_args(arguments)


def search(given: argparse.Namespace) -> int:
    """Run the search and write the method file. -> the layer found"""
    pairs = read_pairs(given.questions, given.samples)
    model, processor = load_model(given.model, dtype=given.dtype, device=given.device)
    depth = model.config.text_config.num_hidden_layers
    first = max(1, round(EARLIEST * depth)) if given.first is None else given.first
    if not 1 <= first < depth:
        raise SearchError(f"--first {first} is not one of the layers 1 to {depth - 1}")
    layers = range(first, depth)
    batches = make_batches(pairs, given.images, processor, model.config, given.batch_size, given.template)
    means = withdrawal_divergences(model, batches, layers).mean(dim=0).tolist()
    for layer, mean in zip(layers, means, strict=True):
        print(f"layer {layer:3d}  KL(withdrawn || full) {mean:.6f}  {'within' if mean <= given.threshold else 'above'}")
    layer = choose_layer(layers, means, given.threshold)
    note = (
        f"VTW (Lin et al., AAAI 2025, arXiv 2405.05803): layer found for {given.model} on {len(pairs)} questions of "
        f"{given.questions.name}, mean KL {means[layer - first]:.3g} <= {given.threshold:g}."
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(method_file(layer, model.config.reduction, note), encoding="utf-8")
    return layer


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. -> exit status: 0 done, 2 it cannot be run as asked, or no layer will do"""
    given = parse(arguments)
    try:
        layer = search(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"K = {layer}: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
