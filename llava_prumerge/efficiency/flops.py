"""FLOPs of a prefill in every convention in use, and the true ones by part of the model.

True FLOPs are those of all matrix products, 2 per multiply-add; by part: vision tower (the blocks LLaVA runs), reducer,
projector, LLM prefill (head at the last position) and one decoded token.
"""

from __future__ import annotations

from typing import Any

from llava_prumerge.efficiency.conventions import CONVENTIONS, head_flops, prefill_flops
from llava_prumerge.efficiency.operations import HALF, decode, matrix_flops, projector, tower
from llava_prumerge.efficiency.options import amount, columns
from llava_prumerge.efficiency.shapes import LanguageShape, ModelShape
from llava_prumerge.efficiency.tokens import TokenCounts, constant_counts

PARTS = {
    "tower": "vision tower",
    "reducer": "reducer",
    "projector": "projector",
    "prefill": "LLM prefill",
    "decode": "decode, per token",
}


def ranking_flops(shape: LanguageShape, counts: TokenCounts) -> int:
    """What a decoder pruner adds: one attention row before each drop, and keys where the layer has not run."""
    total = 0
    for tokens in (visual + counts.text for visual in counts.ranked):
        row = 2 * shape.hidden * shape.attention_width + 2 * tokens * shape.attention_width
        total += row + (2 * tokens * shape.hidden * shape.kv_width if counts.ahead else 0)
    return total


def split(shape: ModelShape, counts: TokenCounts, reducer: float = 0, causal: bool = False) -> dict[str, float]:
    """True FLOPs by part, keys as in `PARTS`."""
    language = shape.language
    lengths = [(tokens, 1) for tokens in counts.lengths]
    return {
        "tower": matrix_flops(tower(shape.vision, counts.tower, fused=False)),
        "reducer": reducer or ranking_flops(language, counts),
        "projector": matrix_flops(projector(shape.projector, counts.projected)),
        "prefill": prefill_flops(language, counts.lengths, causal) + head_flops(language),
        "decode": matrix_flops(decode(language, lengths, HALF, fused=False)),
    }


def report(shape: ModelShape, counts: TokenCounts, reducer: float = 0) -> dict[str, Any]:
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


def as_text(shape: ModelShape, counts: TokenCounts, found: dict[str, Any], method: str | None) -> str:
    """A report as tables."""
    full = shape.vision.patches
    title = f"{shape.name}, {method or 'no method'}: {counts.told(full)}"
    rows: list[tuple[str, ...]] = [("prefill of the language model", "dense", "causal", f"dense, {full}", "share")]
    for letter, item in found["conventions"].items():
        rows.append((f"{letter}  {item['counted']}", *_cells(item)))
    parts: list[tuple[str, ...]] = [("true FLOPs by part", "dense", "causal", f"dense, {full}", "share")]
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
