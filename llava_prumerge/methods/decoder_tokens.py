"""What a decoder pruner sees just before a layer, and the numbers of the language model it may need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout


class AttentionRows(Protocol):
    """Gives attention rows of a decoder layer, whatever attention backend runs."""

    def __call__(self, layer: int, rows: Tensor) -> Tensor:
        """Softmax attention of query rows [B, R] of `layer` (this one or the one before). -> [B, H, R, L]"""


def _not_given(*_: object) -> Tensor:
    raise ReductionError("this method needs projections of decoder layers, and the model gave none")


@dataclass
class DecoderTokens:
    """What a decoder pruner sees just before a layer; what it asks for is computed from a layer's own projections.

    Attributes:
        hidden: [B, L, D] the layer's input.
        layout: what each place holds.
        attention: attention rows of this layer or of the one before, gates of earlier layers included.
        queries, keys: layer (this one or the one before) -> its rotated projections [B, H, L, D/H]; the keys' heads as
            often as needed.
        mean_query: layer, weights [B, L] -> the weighted mean of its queries [B, H, 1, D/H], much cheaper than the
            queries themselves.
        normed: gives the layer's input after the model's final norm, [B, L, D].
        nearness: layer, rows [B, R] -> [B, R, L], the mean cosine of the rotary angles between a row's place and all.
    """

    hidden: Tensor
    layout: TokenLayout
    attention: AttentionRows
    queries: Callable[[int], Tensor] = _not_given
    keys: Callable[[int], Tensor] = _not_given
    mean_query: Callable[[int, Tensor], Tensor] = _not_given
    normed: Callable[[], Tensor] = _not_given
    nearness: Callable[[int, Tensor], Tensor] = _not_given


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a language model that a pruner may need.

    Attributes:
        layers, hidden, heads: of the decoder: their number, D, H.
        patches: P, visual tokens of one image where no reducer takes any.
        reduced: a reducer stands before the decoder, so that images may come with fewer than P tokens.
    """

    layers: int
    hidden: int
    heads: int
    patches: int
    reduced: bool = False
