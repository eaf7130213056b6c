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
from typing import TYPE_CHECKING

from tqdm import tqdm

from llava_prumerge.search.command import SearchError, run_search, search_parser
from llava_prumerge.search.method_file import write_method

if TYPE_CHECKING:
    from torch import Tensor

    from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration

EARLIEST = 5 / 32
"""Layers before this fraction of the depth are not tried: the authors begin at layer 5 of 32."""


def withdrawal_divergences(
    model: PruMergeLlavaForConditionalGeneration, batches: Sequence[dict[str, Tensor]], layers: Sequence[int]
) -> Tensor:
    """How much the next token's distribution changes with withdrawal before each layer. -> [samples, layers]

    Args:
        model: its own pruner is left out while this runs.
        batches: left-padded prompts with images.
        layers: the K to try.
    """
    import torch

    from llava_prumerge.search.comparison import Comparison

    comparison = Comparison(model, batches, "kl")
    bar = tqdm(layers, desc="withdrawal", unit="layer", disable=not sys.stderr.isatty())
    return torch.stack([comparison.costs({"name": "vtw", "layer": layer}) for layer in bar], dim=1)


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


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = search_parser("vtw", __doc__, Path("runs/search/vtw.yaml"), 20)
    parser.add_argument("--threshold", type=float, default=0.003, help="largest mean KL that counts as no change")
    parser.add_argument("--first", type=int, help="the first layer to try; 5 of 32, at that fraction of the depth")
    return parser.parse_args(arguments)


def search(given: argparse.Namespace) -> str:
    """Run the search and write the method file. -> what was found"""
    from llava_prumerge.search.calibration import prepare

    model, batches, number = prepare(given)
    depth = model.config.text_config.num_hidden_layers
    first = max(1, round(EARLIEST * depth)) if given.first is None else given.first
    if not 1 <= first < depth:
        raise SearchError(f"--first {first} is not one of the layers 1 to {depth - 1}")
    layers = range(first, depth)
    means = withdrawal_divergences(model, batches, layers).mean(dim=0).tolist()
    for layer, mean in zip(layers, means, strict=True):
        print(f"layer {layer:3d}  KL(withdrawn || full) {mean:.6f}  {'within' if mean <= given.threshold else 'above'}")
    layer = choose_layer(layers, means, given.threshold)
    note = (
        f"VTW (Lin et al., AAAI 2025, arXiv 2405.05803): layer found for {given.model} on {number} questions of "
        f"{given.questions.name}, mean KL {means[layer - first]:.3g} <= {given.threshold:g}."
    )
    write_method(given.out, {"name": "vtw", "layer": layer}, model.config.reduction, note)
    return f"K = {layer}: {given.out}"


main = run_search(search, parse)

if __name__ == "__main__":
    sys.exit(main())
