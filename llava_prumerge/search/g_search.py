"""G-Search: from the shallowest layer down, the least share of visual tokens that leaves the model's answers alone.

    python -m llava_prumerge.search.g_search --model PATH --questions FILE.jsonl --images DIR [--out g_search.yaml]
        [--samples 64] [--score agreement|kl|loss] [--answer-tokens 1] [--tolerance X] [--steps 64] [--rows last|text]
        [--first 1] [--batch-size 4] [--template vicuna_v1] [--dtype float32] [--device cpu]

Accelerating Multimodal LLMs by Searching Optimal Vision Token Reduction, Zhao et al., CVPR 2025 (arXiv 2412.00556). No
code was published and the paper's body could not be read: this is our reading. Certain (abstract): greedy, from
shallow to deep, the least number of tokens per layer without loss, which is assumed not to rise with depth. Ours:
bisection per layer (a note on the paper has Bayesian optimisation there); layers after the one that is searched keep
what it leaves, as dropped tokens do not return; the scores, their tolerances and the grid of shares.

Written are a method file for the pruner with a rate for each layer (`--method` where there are several; a vision reducer
that the checkpoint names stays) and, beside it, a picture of the curve (PNG).
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_prumerge.methods.search_target import SearchKind
from llava_prumerge.search.command import ROWS, SCORES, SearchError, run_search, search_parser
from llava_prumerge.search.method_file import block_of, find_target, write_method

TOLERANCES = {"agreement": 0.02, "kl": 0.003, "loss": 0.01}
"""Ours: one question of 64; VTW's threshold; a hundredth of a nat."""


def least_steps(
    layers: int,
    first: int,
    steps: int,
    acceptable: Callable[[list[float]], bool],
    found: Callable[[int, list[float]], None] = lambda layer, rates: None,
) -> list[float]:
    """Bisect each layer's rate on the grid 0, 1/steps, ..., 1, given the rates of the layers before it.

    Args:
        layers: of the decoder.
        first: the first layer before which tokens may be dropped; the rates before it are 1.
        steps: of the grid.
        acceptable: whether a curve (one rate per layer) will do; it must do so at rates of 1, and whatever does must
            still do with a larger rate (the least is only then found).
        found: told of each layer and the curve so far.

    Returns:
        One rate per layer, never rising.
    """
    kept = [steps] * layers
    for layer in range(first, layers):
        fails, works = -1, kept[layer]
        while works - fails > 1:
            middle = (works + fails) // 2
            tried = kept[:layer] + [middle] * (layers - layer)
            fails, works = (fails, middle) if acceptable([step / steps for step in tried]) else (middle, works)
        kept[layer:] = [works] * (layers - layer)
        found(layer, [step / steps for step in kept])
    return [step / steps for step in kept]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = search_parser("g_search", __doc__, Path("runs/search/g_search.yaml"), 64, method=True)
    parser.add_argument("--score", choices=SCORES, default="agreement", help="what must not change")
    parser.add_argument("--answer-tokens", type=int, default=1, help="tokens of the full model's answer that count")
    parser.add_argument(
        "--tolerance", type=float, help=f"largest mean cost that counts as no loss; of each score: {TOLERANCES}"
    )
    parser.add_argument("--steps", type=int, default=64, help="shares are whole multiples of one over this")
    parser.add_argument("--rows", choices=ROWS, default="last", help="rows of the prompt that rank")
    parser.add_argument("--first", type=int, default=1, help="the first layer before which tokens may be dropped")
    return parser.parse_args(arguments)


def search(given: argparse.Namespace) -> str:
    """Run the search, write the method file and the picture. -> what was found"""
    from llava_prumerge.search.calibration import prepare
    from llava_prumerge.search.comparison import Comparison
    from llava_prumerge.search.drawing import draw_shares

    tolerance = TOLERANCES[given.score] if given.tolerance is None else given.tolerance
    if not tolerance >= 0:
        raise SearchError(f"--tolerance {tolerance} is not 0 or more")
    if given.steps < 1:
        raise SearchError(f"--steps {given.steps} is not 1 or more")
    name, target = find_target(SearchKind.RATES, given.method)
    model, batches, number = prepare(given)
    comparison = Comparison(model, batches, given.score, given.answer_tokens)
    layers = comparison.shape.layers
    if not 1 <= given.first < layers:
        raise SearchError(f"--first {given.first} is not one of the layers 1 to {layers - 1}")

    def block(rates: list[float]) -> dict[str, Any]:
        return block_of(name, target, rates=rates, first=given.first, rows=given.rows)

    bits, began, costs = (given.steps + 1).bit_length(), time.monotonic(), {}
    bar = tqdm(total=bits * (layers - given.first), desc="g-search", unit="run", disable=not sys.stderr.isatty())

    def acceptable(rates: list[float]) -> bool:
        costs[tuple(rates)] = cost = comparison.cost(block(rates))
        bar.update()
        return cost <= tolerance

    def found(layer: int, rates: list[float]) -> None:
        """Runs that are left: the later layers' bisections start from the rate found here."""
        each = (round(rates[layer] * given.steps) + 1).bit_length()
        bar.total = len(costs) + each * (layers - 1 - layer)
        left = (bar.total - len(costs)) * (time.monotonic() - began) / max(1, len(costs))
        cost = costs.get(tuple(rates), 0.0)
        tqdm.write(f"layer {layer:3d}  rate {rates[layer]:.4f}  {given.score} cost {cost:.6f}  about {left:.0f} s left")

    rates = least_steps(layers, given.first, given.steps, acceptable, found)
    bar.close()
    cost, tokens = comparison.cost(block(rates)), comparison.tokens(block(rates))
    equivalent = sum(tokens) / layers
    note = (
        f"G-Search (Zhao et al., CVPR 2025, arXiv 2412.00556), our reading: rates found for {given.model} on {number} "
        f"questions of {given.questions.name}, {given.score} cost {cost:.3g} <= {tolerance:g} over "
        f"{given.answer_tokens} answer tokens, {equivalent:.4g} of {comparison.present:.4g} equivalent tokens."
    )
    write_method(given.out, block(rates), model.config.reduction, note)
    title = f"G-Search: {equivalent:.4g} of {comparison.present:.4g} equivalent tokens"
    draw_shares(given.out.with_suffix(".png"), [count / comparison.present for count in tokens], title)
    return f"{equivalent:.4g} of {comparison.present:.4g} equivalent tokens, {given.score} cost {cost:.4g}: {given.out}"


main = run_search(search, parse)

if __name__ == "__main__":
    sys.exit(main())
