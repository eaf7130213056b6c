"""Six ways to count the FLOPs of a prefill that papers on visual-token reduction use, A to F, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llava_prumerge.efficiency.operations import HALF, decoder_block, head, layer, matrix_flops, tool_prefill
from llava_prumerge.efficiency.shapes import LanguageShape
from llava_prumerge.efficiency.tokens import TokenCounts

SQUARED = ("scores", "mix", "softmax")
"""Operations on pairs of tokens: of their n^2 a causal mask leaves n (n + 1) / 2."""


def layer_macs(shape: LanguageShape, tokens: float, matrices: int, causal: bool = False) -> float:
    """Multiply-adds of one decoder layer: 4nd^2 + 2n^2d + `matrices` ndm, and with grouped keys and values less.

    Args:
        shape: d is its hidden width, m that of its FFN.
        tokens: n; a mean may have a fraction.
        matrices: of the FFN that are counted; a Llama has 3.
        causal: of the n^2 pairs count those that a causal mask leaves.
    """
    left_out = ("gate", "up", "down")[: 3 - matrices]
    counted: float = 0
    for item in layer(decoder_block(shape), tokens, tokens, HALF):
        if item.product and item.name not in left_out:
            halved = causal and item.name in SQUARED
            counted += item.count * (tokens + 1) // (2 * tokens) if halved else item.count
    return counted // 2


def head_flops(shape: LanguageShape, tokens: int = 1) -> float:
    """The language-model head, 2 per multiply-add."""
    return matrix_flops([head(shape, tokens)])


def prefill_flops(shape: LanguageShape, lengths: Iterable[float], causal: bool = False) -> float:
    """True FLOPs of all matrix products of the layers, 2 per multiply-add; the head is not among them.

    Dense, with as many key heads as query heads, this is 24 n D^2 + 4 n^2 D per layer for an FFN of 2 x 4 D (VisPCO).

    Args:
        shape: of the decoder.
        lengths: tokens in each layer.
        causal: see `layer_macs`.
    """
    runs = Counter(lengths).items()
    return sum(2 * layers * layer_macs(shape, tokens, 3, causal) for tokens, layers in runs if tokens)


def _one_layer(shape: LanguageShape, counts: TokenCounts, causal: bool) -> float:
    return sum(layer_macs(shape, tokens, 2, causal) for tokens in counts.lengths) / shape.layers


def _two_matrices(shape: LanguageShape, counts: TokenCounts, causal: bool) -> float:
    return sum(layer_macs(shape, tokens, 2, causal) for tokens in counts.visual)


def _three_matrices(shape: LanguageShape, counts: TokenCounts, causal: bool) -> float:
    return sum(layer_macs(shape, tokens, 3, causal) for tokens in counts.visual)


def _true(shape: LanguageShape, counts: TokenCounts, causal: bool) -> float:
    return prefill_flops(shape, counts.lengths, causal)


def _module(shape: LanguageShape, counts: TokenCounts, causal: bool) -> float:
    return prefill_flops(shape, counts.lengths, causal) + head_flops(shape, counts.lengths[-1])


def _tool(shape: LanguageShape, counts: TokenCounts, causal: bool) -> float:
    total = 0.0
    for tokens, layers in counts.grouped():
        share = (tokens + 1) / (2 * tokens) if causal and tokens else 1.0
        made = tool_prefill(shape, [(tokens, layers)], HALF)[:-1]
        total += sum(item.count * item.times * (share if item.name in SQUARED else 1) for item in made)
    return total + tool_prefill(shape, [], HALF)[-1].count


@dataclass(frozen=True)
class Convention:
    """One way to count.

    Attributes:
        letter: A to F.
        counted: what it counts.
        who: uses it.
        flops: (shape, counts, causal) -> the number.
    """

    letter: str
    counted: str
    who: str
    flops: Callable[[LanguageShape, TokenCounts, bool], float]


CONVENTIONS = (
    Convention("A", "one layer, multiply-adds, 2 FFN matrices, visual + text", "FastV's paper", _one_layer),
    Convention(
        "B",
        "all layers, multiply-adds, 2 FFN matrices, visual",
        "tflops.py of FastV and DivPrune, HoliTom, DyCoke",
        _two_matrices,
    ),
    Convention(
        "C",
        "all layers, multiply-adds, 3 FFN matrices, visual",
        "PyramidDrop, SparseVLM (code), most tables of 2025",
        _three_matrices,
    ),
    Convention(
        "D", "all layers, 2 per multiply-add, visual + text", "true FLOPs of the layers' matrix products", _true
    ),
    Convention("E", "D and the head at every position", "calflops on the module (VTW, issue 7)", _module),
    Convention("F", "LLM-Viewer's rules: D, softmax, norms, half a head", "PruMerge's cost table", _tool),
)
