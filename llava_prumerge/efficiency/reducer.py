"""Time of the reduction step as a share of the vision tower's forward pass.

    python -m llava_prumerge.efficiency.reducer [--methods NAME ...] [--batch 1 8]

The tower is CLIP ViT-L/14-336 with random weights, as far as LLaVA runs it (23 of 24 blocks), in float32; the reduction is everything a
method adds to it, the projections to the class query and the keys included. The made-up class attention has about 40 outliers of 576
patches. Both run with the same threads, in turns. The last line is one JSON object.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml

from llava_prumerge.methods.base import ReductionError, VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer, method_names

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

    def probe(own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        query = torch.nn.functional.linear(hidden[:, :1], to_query, bias)
        return query, torch.nn.functional.linear(hidden, rotation.T)

    return lambda: VisionTokens(hidden[:, 1:], (side, side), probe, HEADS, ids=ids)


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


def seconds(action: Callable[[], object], repeats: int) -> list[float]:
    """Time of each of `repeats` runs after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return times


def quartiles(times: list[float]) -> dict[str, float]:
    """First quartile, median and third quartile in milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"q1": round(1e3 * low, 3), "median": round(1e3 * middle, 3), "q3": round(1e3 * high, 3)}


def blocks_of(names: list[str] | None) -> list[dict[str, Any]]:
    """Reduction blocks from names or flow mappings ("{name: pool, rows: 12, columns: 12}"); by default all that need no setting."""
    if names:
        parsed = [yaml.safe_load(name) for name in names]
        return [item if isinstance(item, dict) else {"name": str(item)} for item in parsed]
    found = []
    for name in method_names(VisionReducer):
        try:
            reducer = build_reducer({"name": name})
        except ReductionError:  # needs settings: there is no default to time
            continue
        if reducer.site == "tower":
            found.append({"name": name})
    return found


@torch.inference_mode()
def measure(
    blocks: list[dict[str, Any]], images: int, tower: torch.nn.Module, forwards: int, repeats: int
) -> list[dict[str, Any]]:
    """One row per method: tower and reduction in milliseconds, their ratio in percent, and tokens kept."""
    pixels = torch.randn(images, 3, SIDE * PATCH, SIDE * PATCH)
    make = synthetic_tokens(images)
    clip = quartiles(seconds(lambda: tower(pixel_values=pixels), forwards))
    probe = quartiles(seconds(lambda: make().probe(), repeats))
    rows = []
    for block in blocks:
        reducer = build_reducer(block).eval()
        kept = float(reducer(make())[1].sum(dim=1).float().mean())
        times = quartiles(seconds(lambda reducer=reducer: reducer(make()), repeats))
        rows.append(
            {
                "method": block["name"],
                "settings": {key: value for key, value in block.items() if key != "name"},
                "batch": images,
                "kept_mean": round(kept, 2),
                "clip_ms": clip,
                "reduction_ms": times,
                "projections_ms": probe["median"],
                "share_percent": round(100 * times["median"] / clip["median"], 4),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. Gives what it prints last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", help='names or blocks, such as prumerge "{name: pool, rows: 12, columns: 12}"'
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--forwards", type=int, default=3, help="timed forward passes of the tower")
    parser.add_argument("--repeats", type=int, default=15, help="timed reductions")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    tower, blocks, rows = clip_tower(), blocks_of(given.methods), []
    print(
        f"CLIP ViT-L/14-336, {BLOCKS} blocks, float32, CPU, {torch.get_num_threads()} threads; medians (quartiles) in ms"
    )
    for images in given.batch:
        for row in measure(blocks, images, tower, given.forwards, given.repeats):
            rows.append(row)
            print(
                f"batch {images}  {row['method']:<14} kept {row['kept_mean']:6.1f}  {_spread(row['reduction_ms'])}  of tower "
                f"{_spread(row['clip_ms'])}  = {row['share_percent']:.2f}%  (projections alone {row['projections_ms']:.1f})"
            )
    result = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blocks": BLOCKS,
        "target_percent": TARGET_PERCENT,
        "worst_percent": max(row["share_percent"] for row in rows),
        "rows": rows,
    }
    print(json.dumps(result))
    return result


def _spread(times: dict[str, float]) -> str:
    return f"{times['median']:.1f} ({times['q1']:.1f} to {times['q3']:.1f})"


if __name__ == "__main__":
    main()
