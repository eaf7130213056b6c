"""Layer search: the first layer that may run without a method's visual tokens and the model still says what it would.

    python -m llava_prumerge.search layer --model PATH --questions FILE.jsonl --images DIR [--method NAME] [--out METHOD.yaml]
        [--samples 20] [--threshold X] [--first N] [--batch-size 4] [--template vicuna_v1] [--dtype float32] [--device cpu]

The search of Visual Tokens Withdrawal (VTW), Lin et al., AAAI 2025 (arXiv 2405.05803; code lzhxmu/VTW a3d8cfc), for any
pruner that lists a layer among its `search_targets`. For each K the divergence KL(reduced || full) of the next-token
distributions after the prompt is averaged over the samples; K is the first one whose mean is at most the threshold.
Where to begin, and the threshold, the method says (VTW: layer 5 of 32, and 0.003, the authors' for LLaVA-1.5-7B; they
took 0.0005 for 13B, 0.0001 for 1.6-7B). Written is a method file; a vision reducer that the checkpoint names stays.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llava_prumerge.methods.search_target import SearchKind
from llava_prumerge.search.command import SearchError, run_search, search_parser
from llava_prumerge.search.method_file import block_of, find_target, write_method

if TYPE_CHECKING:
    from torch import Tensor

    from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration


def layer_divergences(
    model: PruMergeLlavaForConditionalGeneration,
    batches: Sequence[dict[str, Tensor]],
    layers: Sequence[int],
    block: Callable[[int], dict[str, Any]],
) -> Tensor:
    """How much the next token's distribution changes with a pruner that acts before each layer. -> [samples, layers]

    Args:
        model: its own pruner is left out while this runs.
        batches: left-padded prompts with images.
        layers: the K to try.
        block: K -> the pruner's block.
    """
    import torch

    from llava_prumerge.search.comparison import Comparison

    comparison = Comparison(model, batches, "kl")
    bar = tqdm(layers, desc="withdrawal", unit="layer", disable=not sys.stderr.isatty())
    return torch.stack([comparison.costs(block(layer)) for layer in bar], dim=1)


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
    parser = search_parser("layer", __doc__, None, 20, method=True)
    parser.add_argument("--threshold", type=float, help="largest mean KL that counts as no change; null: the method's")
    parser.add_argument(
        "--first", type=int, help="the first layer to try; null: the method's, at its fraction of the depth"
    )
    return parser.parse_args(arguments)


def search(given: argparse.Namespace) -> str:
    """Run the search and write the method file. -> what was found"""
    from llava_prumerge.search.calibration import prepare

    name, target = find_target(SearchKind.LAYER, given.method)
    threshold = target.threshold if given.threshold is None else given.threshold
    out = Path(f"runs/search/{name}.yaml") if given.out is None else given.out
    model, batches, number = prepare(given)
    depth = model.config.get_text_config().num_hidden_layers
    first = max(1, round(target.earliest * depth)) if given.first is None else given.first
    if not 1 <= first < depth:
        raise SearchError(f"--first {first} is not one of the layers 1 to {depth - 1}")
    layers = range(first, depth)

    def block(layer: int) -> dict[str, Any]:
        return block_of(name, target, layer=layer)

    means = layer_divergences(model, batches, layers, block).mean(dim=0).tolist()
    for layer, mean in zip(layers, means, strict=True):
        print(f"layer {layer:3d}  KL(withdrawn || full) {mean:.6f}  {'within' if mean <= threshold else 'above'}")
    layer = choose_layer(layers, means, threshold)
    note = (
        f"{target.source}: layer found for {given.model} on {number} questions of "
        f"{given.questions.name}, mean KL {means[layer - first]:.3g} <= {threshold:g}."
    )
    write_method(out, block(layer), model.config.reduction, note)
    return f"K = {layer}: {out}"


main = run_search(search, parse)

if __name__ == "__main__":
    sys.exit(main())
