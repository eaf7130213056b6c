"""What a model does, operation by operation, with the bytes each moves: by the paper's tool's rules, and by our own.

The paper's cost table comes from LLM-Viewer (Yuan et al., arXiv 2402.16363; commit 781c831). `tool_layer` and
`tool_head` follow its rules with what is odd about them: keys are read twice, the SiLU works on the hidden width, an
addition reads one of its two inputs, the head costs 1 operation per multiply-add and a byte per weight whatever the
precision. `layer` and what is built of it are ours: each tensor is moved as often as an implementation has to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from llava_prumerge.efficiency.shapes import LanguageShape, VisionShape

if TYPE_CHECKING:
    from llava_prumerge.model.image_shape import ImageShape


class Widths(NamedTuple):
    """Bytes per number: of weights, activations and the key-value cache."""

    weights: float
    activations: float
    cache: float


HALF = Widths(2, 2, 2)


@dataclass(frozen=True)
class Operation:
    """One kernel.

    Attributes:
        name: of it.
        count: of arithmetic operations.
        weights, read, written, cache_read, cache_written: bytes moved.
        times: how often it runs.
        product: it is a matrix product and nothing else.
    """

    name: str
    count: float
    weights: float = 0
    read: float = 0
    written: float = 0
    cache_read: float = 0
    cache_written: float = 0
    times: int = 1
    product: bool = False

    @property
    def bytes(self) -> float:
        """All traffic of one run."""
        return self.weights + self.read + self.written + self.cache_read + self.cache_written


def tool_layer(shape: LanguageShape, length: int, widths: Widths) -> list[Operation]:
    """One decoder layer's prefill of `length` tokens by LLM-Viewer's rules, its attention not fused."""
    weight, number, cached = widths
    hidden, squares = shape.hidden, shape.heads * length**2
    found = []
    names = ("query", "key", "value", "output", "gate", "up", "down")
    for name, (inputs, outputs) in zip(names, shape.linear):
        made = outputs * length
        kept = name in ("key", "value")
        to_cache, to_memory = (made * cached, 0) if kept else (0, made * number)
        count, moved = 2 * inputs * made, (inputs * outputs * weight, inputs * length * number)
        found.append(Operation(name, count, *moved, written=to_memory, cache_written=to_cache))
    product, keys = 2 * length**2 * hidden, length * hidden * cached
    found += [
        Operation("scores", product, written=squares * number, cache_read=2 * keys),
        Operation("mix", product, read=squares * number, written=length * hidden * number, cache_read=keys),
        Operation("softmax", 5 * squares, read=squares * number, written=squares * number),
    ]
    row = length * hidden * number
    found += [Operation(name, 7 * length * hidden, read=row, written=row) for name in ("norm", "norm 2")]
    found += [Operation(name, length * hidden, read=row, written=row) for name in ("add", "add 2")]
    found.append(Operation("silu", 2 * length * hidden, read=2 * row, written=row))
    return found


def tool_head(shape: LanguageShape, widths: Widths) -> Operation:
    """The language-model head for one token by LLM-Viewer's rules."""
    size, number = shape.hidden * shape.vocabulary, widths.activations
    return Operation("head", size, weights=size, read=shape.hidden * number, written=shape.vocabulary * number)


def tool_prefill(shape: LanguageShape, grouped: list[tuple[int, int]], widths: Widths) -> list[Operation]:
    """Prefill by LLM-Viewer's rules; `grouped`: (tokens, layers that see so many)."""
    layers = [replace(item, times=times) for length, times in grouped for item in tool_layer(shape, length, widths)]
    return [*layers, tool_head(shape, widths)]


class Block(NamedTuple):
    """Widths of a transformer block; `gated`: a Llama's, with rotary positions and a third FFN matrix."""

    hidden: int
    attention: int
    kv: int
    heads: int
    intermediate: int
    gated: bool


def linear(name: str, inputs: int, outputs: int, rows: float, widths: Widths, cached: bool = False) -> Operation:
    """A matrix product that reads its input and weights once; its result goes to the cache or to memory."""
    made = rows * outputs
    to_cache, to_memory = (made * widths.cache, 0) if cached else (0, made * widths.activations)
    moved = inputs * outputs * widths.weights, rows * inputs * widths.activations
    return Operation(name, 2 * inputs * made, *moved, written=to_memory, cache_written=to_cache, product=True)


def layer(
    block: Block, rows: float, keys: float, widths: Widths, fused: bool = False, causal: bool = True
) -> list[Operation]:
    """One block for one sequence.

    Args:
        block: its widths.
        rows: tokens computed.
        keys: tokens attended to, those included.
        widths: bytes.
        fused: attention in one kernel that never writes the scores and skips what a causal mask hides (FlashAttention).
        causal: later tokens are hidden.
    """
    hidden, attention, kv, heads, wide, gated = block
    number, row = widths.activations, rows * hidden * widths.activations
    query, cache = rows * attention * number, keys * kv * widths.cache
    pairs = rows * keys
    if fused and causal:
        pairs -= rows * (rows - 1) // 2
    found = [
        linear("query", hidden, attention, rows, widths),
        linear("key", hidden, kv, rows, widths, cached=True),
        linear("value", hidden, kv, rows, widths, cached=True),
        linear("output", attention, hidden, rows, widths),
    ]
    products, exponents, scores = 2 * pairs * attention, 5 * pairs * heads, pairs * heads * number
    if fused:
        found.append(Operation("attention", 2 * products + exponents, read=query, written=query, cache_read=2 * cache))
    else:
        found += [
            Operation("scores", products, read=query, written=scores, cache_read=cache, product=True),
            Operation("softmax", exponents, read=scores, written=scores),
            Operation("mix", products, read=scores, written=query, cache_read=cache, product=True),
        ]
    if gated:
        turned = rows * (attention + kv)
        found.append(Operation("rotary", 3 * turned, read=turned * number, written=turned * number))
        found += [linear(name, hidden, wide, rows, widths) for name in ("gate", "up")]
    else:
        found.append(linear("up", hidden, wide, rows, widths))
    mapped = rows * wide * number
    found.append(Operation("activation", 5 * rows * wide, read=(1 + gated) * mapped, written=mapped))
    found.append(linear("down", wide, hidden, rows, widths))
    found += [Operation(name, 7 * rows * hidden, read=row, written=row) for name in ("norm", "norm 2")]
    found += [Operation(name, rows * hidden, read=2 * row, written=row) for name in ("add", "add 2")]
    return found


def decoder_block(shape: LanguageShape) -> Block:
    """A Llama layer's widths."""
    return Block(shape.hidden, shape.attention_width, shape.kv_width, shape.heads, shape.intermediate, True)


def prefill(shape: LanguageShape, grouped: list[tuple[int, int]], widths: Widths, fused: bool) -> list[Operation]:
    """All layers, and the head for the last token; `grouped`: (tokens, layers that see so many)."""
    block = decoder_block(shape)
    layers = [
        replace(item, times=times)
        for length, times in grouped
        if length
        for item in layer(block, length, length, widths, fused)
    ]
    return [*layers, head(shape)]


def decode(
    shape: LanguageShape, grouped: list[tuple[int, int]], widths: Widths, fused: bool, written: int = 1
) -> list[Operation]:
    """One more token, the `written`-th of the answer; `grouped`: (tokens of the prompt, layers that hold so many)."""
    block = decoder_block(shape)
    layers = [
        replace(item, times=times)
        for length, times in grouped
        for item in layer(block, 1, length + written, widths, fused)
    ]
    return [*layers, head(shape)]


def head(shape: LanguageShape, tokens: int = 1) -> Operation:
    """The language-model head at some positions, at 16 bits."""
    return linear("head", shape.hidden, shape.vocabulary, tokens, HALF)


def tower(shape: VisionShape, patches: int, fused: bool, blocks: int | None = None) -> list[Operation]:
    """The vision tower on one image, at 16 bits.

    Args:
        shape: of the tower.
        patches: it sees; attention is over these and the class token.
        fused: see `layer`.
        blocks: that run; None is those LLaVA needs for the features.
    """
    times, cut = shape.run if blocks is None else blocks, shape.cut
    if cut is not None:
        return _tower_of_tiles(shape, cut, patches // cut.tiles, times, fused)
    block = Block(shape.width, shape.width, shape.width, shape.heads, shape.intermediate, False)
    rows = patches + 1
    made = [replace(item, times=times) for item in layer(block, rows, rows, HALF, fused, causal=False)]
    return [linear("patches", 3 * shape.patch**2, shape.width, patches, HALF), *made]


def _tower_of_tiles(shape: VisionShape, cut: ImageShape, patches: int, times: int, fused: bool) -> list[Operation]:
    """A tower that sees each tile by itself; blocks with a window attend to that many patches."""
    block = Block(shape.width, shape.width, shape.width, shape.heads, shape.intermediate, cut.gated)
    rows, runs = (
        patches + cut.prefix,
        [(times, 0)] if not cut.window else [(times - cut.whole, cut.window), (cut.whole, 0)],
    )
    made = [linear("patches", cut.patch_inputs, shape.width, patches * cut.tiles, HALF)]
    for blocks, window in runs:
        keys = min(window, rows) if window else rows
        one = layer(block, rows, keys, HALF, fused, causal=False)
        made += [replace(item, times=blocks * cut.tiles) for item in one]
    return made


def projector(matrices: Sequence[tuple[int, int]], tokens: int) -> list[Operation]:
    """Linear layers with a GELU between, at 16 bits."""
    if not tokens:
        return []
    made: list[Operation] = []
    for at, (inputs, outputs) in enumerate(matrices):
        if made:
            mapped = tokens * inputs * HALF.activations
            made.append(Operation("activation", 5 * tokens * inputs, read=mapped, written=mapped))
        name = ("first", "second")[at] if len(matrices) == 2 else f"matrix {at + 1}"
        made.append(linear(name, inputs, outputs, tokens, HALF))
    return made


def matrix_flops(operations: Iterable[Operation]) -> float:
    """FLOPs of all matrix products, 2 per multiply-add. Attention that is fused is not told apart and does not count."""
    return sum(item.count * item.times for item in operations if item.product)


def batched(operations: list[Operation], batch: int) -> list[Operation]:
    """The same for several sequences at once: weights are still read once."""
    return [
        replace(
            item,
            count=item.count * batch,
            read=item.read * batch,
            written=item.written * batch,
            cache_read=item.cache_read * batch,
            cache_written=item.cache_written * batch,
        )
        for item in operations
    ]
