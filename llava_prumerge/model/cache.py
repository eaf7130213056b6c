"""The cache whose layers hold different tokens: what each stretch of layers has seen, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from llava_prumerge.methods.base import DecoderPruner, VisionReducer

SERVED = (None, "dynamic", "offloaded")
"""`cache_implementation`s that a reduction can work with."""


class ReducedCache(DynamicCache):
    """A cache that knows, for each stretch of layers that saw the same tokens, where its keys stand.

    `get_seq_length()` without a layer counts the tokens the caller passed in, reduced or not: that is what `generate` slices by.

    Attributes:
        stretches: first layer of a stretch -> positions of its keys [B, keys so far], -1 for padding.
        next_positions: first layer of a stretch -> position of its next token [B].
        seen: tokens passed in so far.
        reduced, pruned: a reducer has acted on images of these tokens, a pruner has dropped some of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        self.stretches: dict[int, Tensor] = {}
        self.next_positions: dict[int, Tensor] = {}
        self.seen = 0
        self.reduced = self.pruned = False
        self._earlier: dict[int, Tensor] = {}

    @property
    def next_position(self) -> Tensor | None:
        """Position of the next token in the first layers. [B]"""
        return self.next_positions.get(0)

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens passed in, or the keys that one layer holds."""
        if layer_idx is None and self.stretches:
            return self.seen
        return super().get_seq_length(layer_idx or 0)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Keys a layer holds before the current queries."""
        return super().get_seq_length(layer_idx)

    def begin_pass(self, tokens: int) -> dict[int, Tensor]:
        """Before so many new tokens: remember what earlier ones left. -> `next_positions` so far"""
        self._earlier = dict(self.stretches)
        self.seen += tokens
        return dict(self.next_positions)

    def before(self, layer: int, held: dict[int, Tensor]) -> Tensor | None:
        """Of what stretches held, that of the stretch this layer belonged to."""
        source = max((start for start in held if start <= layer), default=None)
        return None if source is None else held[source]

    def extend(self, layer: int, places: Tensor, following: Tensor) -> Tensor:
        """Add the positions of new tokens to the stretch that starts at `layer`. -> [B, keys so far and new]

        A stretch that starts here for the first time holds the earlier tokens of the one it is cut from.

        Args:
            layer: where the stretch starts.
            places: [B, L] positions of the new tokens, -1 for padding.
            following: [B] position of the token after them.
        """
        earlier = self.before(layer, self._earlier)
        self.stretches[layer] = places if earlier is None else torch.cat([earlier, places], dim=1)
        self.next_positions[layer] = following
        return self.stretches[layer]

    def _each(self, function: Callable[[Tensor], Tensor]) -> None:
        self.stretches = {layer: function(held) for layer, held in self.stretches.items()}
        self.next_positions = {layer: function(held) for layer, held in self.next_positions.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows follow their beams."""
        super().reorder_cache(beam_idx)
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row several times."""
        super().batch_repeat_interleave(repeats)
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._each(lambda tensor: tensor[indices])

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._begin()

    def check_turn(self, method: VisionReducer | DecoderPruner, acted: bool, images: bool) -> None:
        """Refuse a later turn where a fresh run of all turns would keep other tokens.

        Args:
            method: says in `later_turns` what it can go on with.
            acted: it has chosen among the tokens of earlier turns.
            images: the new turn brings some.
        """
        turns = method.later_turns
        if self.stretches and ((turns == "none" and (acted or images)) or (turns == "text" and acted and images)):
            raise ValueError(
                f"{method.name} chose the visual tokens of the earlier turns by what it was asked then, and "
                "would choose others for all turns together: run all of them afresh, without past_key_values"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Not defined once layers hold different tokens."""
        if not self.stretches:
            return super().crop(tokens_to_remove)
        raise ValueError(
            "a cache of reduced tokens cannot be cropped: assisted decoding is not available with a reduction"
        )


def holds_stock_keys(cache: Cache | None) -> bool:
    """Whether a cache goes on from a run without a reduction: a pass without images then goes on so."""
    return cache is not None and not isinstance(cache, ReducedCache) and bool(cache.get_seq_length() > 0)


def reducing_cache(cache: Cache | None, config: Any) -> ReducedCache:
    """The cache for a pass with a reduction: a new one, the given one, or an empty DynamicCache turned into ours in place.

    Raises:
        ValueError: the given cache is of another class, or holds keys that a reduction knows nothing of.
    """
    if cache is None:
        return ReducedCache(config=config)
    if isinstance(cache, ReducedCache):
        return cache
    if type(cache) is DynamicCache and cache.get_seq_length() == 0:
        cache.__class__ = ReducedCache  # so that the caller's own object goes on to the next turn
        cache._begin()
        return cache
    held = " with keys of a run without a reduction" if type(cache) is DynamicCache else ""
    raise ValueError(
        f"past_key_values is a {type(cache).__name__}{held}; with a reduction layers hold different tokens, which takes "
        "a ReducedCache, an empty DynamicCache, or none"
    )
