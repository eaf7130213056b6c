"""FLOPs of a prefill in every convention in use, and the true ones by part of the model.

    python -m llava_prumerge.efficiency flops --model llava-1.5-7b --method prumerge_plus --tokens 144

True FLOPs are those of all matrix products, 2 per multiply-add; by part: vision tower (the blocks LLaVA runs), reducer,
projector, LLM prefill (head at the last position) and one decoded token.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from llava_prumerge.efficiency.conventions import CONVENTIONS, head_flops, prefill_flops
from llava_prumerge.efficiency.options import add_layout, amount, columns, counts_of, settings_of
from llava_prumerge.efficiency.reduction_flops import reducer_flops
from llava_prumerge.efficiency.shapes import LanguageShape, ModelShape, VisionShape, model_shape
from llava_prumerge.efficiency.tokens import TokenCounts, constant_counts

PARTS = {
    "tower": "vision tower",
    "reducer": "reducer",
    "projector": "projector",
    "prefill": "LLM prefill",
    "decode": "decode, per token",
}


def tower_flops(shape: VisionShape, patches: int, blocks: int | None = None) -> int:
    """The vision tower on one image.

    Args:
        shape: of the tower.
        patches: it sees; attention is over these and the class token.
        blocks: that run; None is those LLaVA needs.
    """
    tokens, width = patches + 1, shape.width
    block = 2 * tokens * (4 * width**2 + 2 * width * shape.intermediate) + 4 * tokens**2 * width
    return 2 * patches * 3 * shape.patch**2 * width + (shape.run if blocks is None else blocks) * block


def projector_flops(shape: ModelShape, tokens: int) -> int:
    """Both linear layers."""
    hidden = shape.language.hidden
    return 2 * tokens * hidden * (shape.vision.width + hidden)


def ranking_flops(shape: LanguageShape, counts: TokenCounts) -> int:
    """What a decoder pruner adds: one attention row before each drop, and keys where the layer has not run."""
    total = 0
    for tokens in (visual + counts.text for visual in counts.ranked):
        row = 2 * shape.hidden * shape.attention_width + 2 * tokens * shape.attention_width
        total += row + (2 * tokens * shape.hidden * shape.kv_width if counts.ahead else 0)
    return total


def decode_flops(shape: LanguageShape, lengths: tuple[int, ...], written: int = 1) -> int:
    """One token, the `written`-th of the answer, that attends to all before it and to itself."""
    weights = 2 * sum(inputs * outputs for inputs, outputs in shape.linear)
    return sum(weights + 4 * (tokens + written) * shape.attention_width for tokens in lengths) + head_flops(shape)


def split(shape: ModelShape, counts: TokenCounts, reducer: int = 0, causal: bool = False) -> dict[str, int]:
    """True FLOPs by part, keys as in `PARTS`."""
    language = shape.language
    return {
        "tower": tower_flops(shape.vision, counts.tower),
        "reducer": reducer or ranking_flops(language, counts),
        "projector": projector_flops(shape, counts.projected),
        "prefill": prefill_flops(language, counts.lengths, causal) + head_flops(language),
        "decode": decode_flops(language, counts.lengths),
    }


def report(shape: ModelShape, counts: TokenCounts, reducer: int = 0) -> dict[str, Any]:
    """Everything the command prints, numbers as numbers."""
    full = constant_counts(shape, None, counts.text)
    return {
        "model": shape.name,
        "text": counts.text,
        "visual": list(counts.visual),
        "patches": shape.vision.patches,
        "equivalent": counts.equivalent,
        "conventions": {
            item.letter: {
                "counted": item.counted,
                "who": item.who,
                "dense": item.flops(shape.language, counts, False),
                "causal": item.flops(shape.language, counts, True),
                "dense_full": item.flops(shape.language, full, False),
            }
            for item in CONVENTIONS
        },
        "true": {
            "dense": split(shape, counts, reducer),
            "causal": split(shape, counts, reducer, causal=True),
            "dense_full": split(shape, full),
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_layout(parser)


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    shape = model_shape(given.model)
    counts = counts_of(given, shape)
    reducer = 0
    if counts.reduced:
        reducer = reducer_flops(shape, given.method, counts.visual[0], counts.text, settings_of(given))
    found = report(shape, counts, reducer)
    if given.json:
        return json.dumps({"method": given.method, **found})
    full = shape.vision.patches
    title = f"{shape.name}, {given.method or 'no method'}: {counts.told(full)}"
    rows = [("prefill of the language model", "dense", "causal", f"dense, {full}", "share")]
    for letter, item in found["conventions"].items():
        rows.append((f"{letter}  {item['counted']}", *_cells(item)))
    parts = [("true FLOPs by part", "dense", "causal", f"dense, {full}", "share")]
    for key, name in PARTS.items():
        parts.append((name, *_cells({column: found["true"][column][key] for column in found["true"]})))
    totals = {
        column: sum(part for key, part in found["true"][column].items() if key != "decode") for column in found["true"]
    }
    parts.append(("sum up to the first token", *_cells(totals)))
    table = columns(rows + parts).splitlines()
    users = columns([(f"{item.letter}  {item.who}",) for item in CONVENTIONS])
    return "\n".join(
        [
            title,
            f"equivalent tokens (visual tokens averaged over the layers): {counts.equivalent:.4g}",
            "",
            *table[: len(rows)],
            "",
            *table[len(rows) :],
            "",
            "who counts so",
            users,
            "",
            "Published tables are dense: all n^2 pairs; causal counts the n (n + 1) / 2 that a causal mask leaves.",
        ]
    )


def _cells(item: dict[str, Any]) -> tuple[str, ...]:
    share = f"{100 * item['dense'] / item['dense_full']:.1f}%" if item["dense_full"] else ""
    return (*(amount(item[column]) for column in ("dense", "causal", "dense_full")), share)
