"""Time of the reduction step as a share of the vision tower's forward pass.

    python -m llava_prumerge.profiling.reducer [--methods METHOD ...] [--batch 1 8]

The tower is CLIP ViT-L/14-336 with random weights, as far as LLaVA runs it (23 of 24 blocks), in float32; the reduction is everything a
method adds to it, the projections to the class query and the keys included. The made-up class attention has about 40 outliers of 576
patches. All run with the same threads, in turns; shares are of one and the same round. Progress goes to stderr. The last line is one
JSON object.

The tower takes most of the time: on two cores about five minutes as it stands, half a minute with --batch 1 --repeats 1.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava_prumerge.efficiency.options import finish
from llava_prumerge.ground.command import Parser, at_least, command
from llava_prumerge.methods.base import ReductionError, VisionReducer, VisionTokens
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.registry import build_reducer, method_names
from llava_prumerge.methods.resolve import resolve_part
from llava_prumerge.profiling.machine import result_of_shares
from llava_prumerge.profiling.timing import Action, ratios, spread, spread_text, take_turns

SIDE, WIDTH, HEADS, BLOCKS, PATCH = 24, 1024, 16, 23, 14
PEAKS, PEAK, SPREAD = 33, 4.0, 0.2  # logits: normal noise outlies the fence by itself in seven more patches
TARGET_PERCENT = 2.0


def synthetic_tokens(images: int, side: int = SIDE, width: int = WIDTH, seed: int = 0) -> Callable[[], VisionTokens]:
    """A maker of fresh inputs: random features whose keys, once projected, give sparse class attention.

    The key projection is a rotation, so that features can be made backwards from the keys that are wanted. Both blocks
    a method can ask about are the same one.
    """
    generator = torch.Generator().manual_seed(seed)
    patches = side * side
    keys = torch.randn(images, 1 + patches, width, generator=generator)
    keys[..., 0] = SPREAD * torch.randn(images, 1 + patches, generator=generator)
    peaks = torch.rand(images, patches, generator=generator).argsort(dim=1)[:, : PEAKS * patches // SIDE**2]
    keys[:, 1:, 0].scatter_(1, peaks, PEAK)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    hidden = keys @ rotation.T  # [N, S, C]
    to_query = torch.zeros(width, width)
    bias = torch.zeros(width)
    bias[0] = width**0.5
    ids = torch.arange(images)

    def projections(own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        query = torch.nn.functional.linear(hidden[:, :1], to_query, bias)
        return query, torch.nn.functional.linear(hidden, rotation.T)

    return lambda: VisionTokens(hidden[:, 1:], (side, side), projections, HEADS, ids=ids)


def clip_tower() -> torch.nn.Module:
    """CLIP ViT-L/14-336 up to the layer LLaVA takes, random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    return CLIPVisionModel(config).eval()


def blocks_of(names: list[str] | None) -> list[dict[str, Any]]:
    """Blocks of vision reducers, described in any way; by default all that see the whole tower's output and nothing else."""
    if names:
        return [resolve_part(name, "vision") for name in names]
    found = []
    for name in method_names(VisionReducer):
        try:
            reducer = build_reducer({"name": name})
        except ReductionError:  # needs settings: there is no default to time
            continue
        if reducer.reads_prompt:  # there is none
            continue
        if reducer.site == "tower" and reducer.input_size(SIDE * PATCH, SIDE * PATCH, PATCH) == (SIDE * PATCH,) * 2:
            found.append({"name": name})
    return found


@torch.inference_mode()
def measure(blocks: list[dict[str, Any]], images: int, tower: torch.nn.Module, repeats: int) -> list[dict[str, Any]]:
    """One row per method: tower and reduction in milliseconds, the share of one in the other in percent, tokens kept."""
    pixels = torch.randn(images, 3, SIDE * PATCH, SIDE * PATCH)
    make = synthetic_tokens(images)
    actions = {
        "tower": Action(lambda _: tower(pixel_values=pixels)),
        "projections": repeated(lambda: make().projections()),
    }
    kept = []
    for at, block in enumerate(blocks):
        reducer = build_reducer(block).eval()
        kept.append(float(reducer(make())[1].sum(dim=1).float().mean()))
        actions[str(at)] = repeated(lambda reducer=reducer: reducer(make()))
    times = take_turns(actions, torch.device("cpu"), repeats, told=Progress(f"batch {images}"))
    rows = []
    for at, block in enumerate(blocks):
        share = ratios(times[str(at)], times["tower"], 100)
        rows.append(
            {
                "method": block["name"],
                "settings": {key: value for key, value in block.items() if key != "name"},
                "batch": images,
                "kept_mean": round(kept[at], 2),
                "clip_ms": spread(times["tower"], 1e3),
                "reduction_ms": spread(times[str(at)], 1e3),
                "projections_ms": spread(times["projections"], 1e3)["median"],
                "share": share,
                "share_percent": share["median"],
            }
        )
    return rows


class Progress:
    """Says on stderr after each round how long it took so far, and about how long is left.

    Args:
        what: is being timed.
    """

    def __init__(self, what: str) -> None:
        self.what, self.began = what, time.monotonic()
        print(f"{what}: begins", file=sys.stderr, flush=True)

    def __call__(self, done: int, rounds: int) -> None:
        took = time.monotonic() - self.began
        left = took / done * (rounds - done)
        print(
            f"{self.what}: round {done} of {rounds}, {took:.0f} s so far, about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def repeated(run: Callable[[], object], times: int = 5) -> Action:
    """Several runs as one, beside a tower that takes a thousand times as long."""

    def run_all(_: Any) -> None:
        for _turn in range(times):
            run()

    return Action(run_all, times=times)


def benchmark(words: list[str]) -> dict[str, Any]:
    """Measure and print. -> what is printed last"""
    parser = Parser("llava_prumerge.profiling.reducer", __doc__)
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help='names, files or blocks, such as "{name: pool, rows: 12, columns: 12}"',
    )
    add_plugin_option(parser)
    parser.add_argument("--batch", nargs="+", type=at_least(1), default=[1, 8])
    parser.add_argument(
        "--repeats", type=at_least(1), default=5, help="rounds: of a forward pass, and five reductions of each method"
    )
    parser.add_argument("--out", type=Path, help="write the JSON object there, too")
    given = parser.parse_args(words)
    torch.manual_seed(0)
    print(f"making a tower of {BLOCKS} blocks", file=sys.stderr, flush=True)
    tower, blocks, rows = clip_tower(), blocks_of(given.methods), []
    print(
        f"CLIP ViT-L/14-336, {BLOCKS} blocks, float32, CPU, {torch.get_num_threads()} threads; medians (quartiles) in ms",
        flush=True,
    )
    for images in given.batch:
        for row in measure(blocks, images, tower, given.repeats):
            rows.append(row)
            print(
                f"batch {images}  {row['method']:<14} kept {row['kept_mean']:6.1f}  {spread_text(row['reduction_ms'], 1)}  of tower "
                f"{spread_text(row['clip_ms'], 1)}  = {row['share_percent']:.2f}%  (projections alone {row['projections_ms']:.1f})"
            )
    result = result_of_shares("reducer", TARGET_PERCENT, rows, blocks=BLOCKS)
    print(finish(result, given.out))
    return result


@command()
def main(words: list[str]) -> None:
    """The command."""
    benchmark(words)


if __name__ == "__main__":
    sys.exit(main())
