"""A stretch of decoder layers between two drops: the tokens it sees, their positions and masks, and the cache of their keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.methods.contract import Merged
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.key_bias import KeyBias
from llava_prumerge.model.layer_projections import LayerProjections
from llava_prumerge.model.packing import apart
from llava_prumerge.ops.layout import Calibration, TokenLayout

SLIDING, FULL = "sliding_attention", "full_attention"
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
        beside, earlier_beside: what a `KeyBias` keeps beside the keys: name -> first layer of a stretch -> [B, keys so
            far, ...]; and as it was before this pass.
        calibration: of the tokens' distances, see `KeyBias`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        self.stretches: dict[int, Tensor] = {}
        self.next_positions: dict[int, Tensor] = {}
        self.seen = 0
        self.reduced = self.pruned = False
        self.beside: dict[str, dict[int, Tensor]] = {}
        self.earlier_beside: dict[str, dict[int, Tensor]] = {}
        self.calibration: Calibration | None = None
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
        self.earlier_beside = {name: dict(held) for name, held in self.beside.items()}
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
        self.beside = {
            name: {layer: function(part) for layer, part in held.items()} for name, held in self.beside.items()
        }
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
            raise ModelError(
                f"{method.name} chose the visual tokens of the earlier turns by what it was asked then, and "
                "would choose others for all turns together: run all of them afresh, without past_key_values"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Not defined once layers hold different tokens."""
        if not self.stretches:
            return super().crop(tokens_to_remove)
        raise ModelError(
            "a cache of reduced tokens cannot be cropped: assisted decoding is not available with a reduction"
        )


def holds_stock_keys(cache: Cache | None) -> bool:
    """Whether a cache goes on from a run without a reduction: a pass without images then goes on so."""
    return cache is not None and not isinstance(cache, ReducedCache) and bool(cache.get_seq_length() > 0)


def reducing_cache(cache: Cache | None, config: Any) -> ReducedCache:
    """The cache for a pass with a reduction: a new one, the given one, or an empty DynamicCache turned into ours in place.

    Raises:
        ModelError: the given cache is of another class, or holds keys that a reduction knows nothing of.
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
    raise ModelError(
        f"past_key_values is a {type(cache).__name__}{held}; with a reduction layers hold different tokens, which takes "
        "a ReducedCache, an empty DynamicCache, or none"
    )


def layer_kind(config: Any, index: int) -> str:
    """Whether a decoder layer looks back over a window or over everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return kinds[index]
    return FULL if getattr(config, "sliding_window", None) is None else SLIDING


def window_of(config: Any, index: int) -> int | None:
    """Positions that a query of a layer looks back over, its own included; None for all."""
    return config.sliding_window if layer_kind(config, index) == SLIDING else None


def same_block(blocks: Tensor) -> Tensor:
    """Which tokens are of one block. [B, L] -> [B, L, L] bool"""
    return (blocks[:, :, None] == blocks[:, None]) & (blocks >= 0)[:, None]


class Stretch:
    """See the file.

    Attributes:
        layout: of the tokens.
        hidden: [B, L, D] their states.
        rope: [B, L, 3] positions in three parts, of models that have such; None for others.
        rows: [B, L] which row of the features that are added after the first layers is a token's, -1 for none; or None.
        blocks: [B, L] the block whose tokens all see each other, -1 for a token of none; or None.
        blocks_pass_windows: they do so across a layer's window too.
        calibration: of distances, see `KeyBias`.
        seen: [B, L] visual tokens that inference would have here: fewer than there are where a pruner in training gates them.

    Args:
        decoder: the language model.
        layout, hidden, rope, rows, blocks: see above.
        cache: where keys are kept, or None.
    """

    def __init__(
        self,
        decoder: Any,
        layout: TokenLayout,
        hidden: Tensor,
        cache: ReducedCache | None,
        rope: Tensor | None = None,
        rows: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> None:
        self.config, self.rotary_emb = decoder.config, decoder.rotary_emb
        self.cache, self.layers = cache, decoder.layers
        self.layout, self.hidden, self.rope, self.rows, self.blocks = layout, hidden, rope, rows, blocks
        self.blocks_pass_windows = False
        self.calibration: Calibration | None = None
        self._bias: KeyBias | None = None
        self.seen = layout.is_image
        self._by_layer_type = "layer_type" in inspect.signature(self.rotary_emb.forward).parameters
        self._masks: dict[str, Tensor | None] = {}
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}
        self._keys: Tensor | None = None

    def follow(self) -> None:
        """Go where the states are: under a device map layers lie on several devices."""
        device = self.hidden.device
        if self.layout.key_mask.device != device:
            self.layout = self.layout.to(device)
            for name in ("rope", "rows", "blocks", "seen"):
                state = getattr(self, name)
                setattr(self, name, None if state is None else state.to(device))

    def begin(self, index: int) -> None:
        """Layers from `index` on see these tokens: from here on masks and keys are theirs."""
        places = self.layout.position_ids.masked_fill(~self.layout.key_mask, -1)
        if self.cache is not None:
            places = self.cache.extend(index, places, self.layout.next_position())
        self._keys, self._masks = places, {}
        self._angles = {}
        weighs = self.layout.key_weight is not None or self.calibration is not None
        if weighs or (self.cache is not None and self.cache.beside):
            self._bias = KeyBias(self.layout, self.calibration, self.cache, index)

    def drop(self, keep: Tensor, start: Tensor | int | None = None, order: Tensor | None = None) -> None:
        """Keep some tokens [B, L], arranged by `order`; with a start ([B, 1] or a number) positions are counted anew."""
        states = {name: state for name in ("rope", "rows", "blocks") if (state := getattr(self, name)) is not None}
        self.layout, self.hidden, *moved = self.layout.compact(keep, self.hidden, *states.values(), order=order)
        for name, state in zip(states, moved, strict=True):
            setattr(self, name, state)
        if start is not None and self.rope is None:  # positions in three parts are places in the image: they stay
            self.layout = self.layout.renumbered(start)
        self.seen = self.layout.is_image

    def obey(self, keep: Tensor | Merged, start: Tensor | int | None) -> None:
        """Act on a pruner's answer: a mask drops, gates are set on keys, merged tokens take places of dropped ones."""
        if isinstance(keep, Merged):
            self.hidden, self.layout = keep.hidden, keep.marked(self.layout)
            self.drop(keep.keep, start, keep.order)
        elif keep.dtype.is_floating_point:
            self.layout, self.seen = self.layout.gate(keep), self.seen & (keep > 0.5)
        else:
            self.drop(keep, start)

    def angles(self, index: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions for a layer. [B or 1, L, R] twice"""
        kind = layer_kind(self.config, index)
        if kind not in self._angles:
            positions = self.layout.position_ids if self.rope is None else self.rope.movedim(2, 0)
            given = (kind,) if self._by_layer_type else ()
            self._angles[kind] = self.rotary_emb(self.hidden, positions, *given)
        return self._angles[kind]

    def mask(self, index: int) -> Tensor | None:
        """The attention mask of a layer, as the attention backend wants it."""
        kind = layer_kind(self.config, index)
        if kind not in self._masks:
            make = create_sliding_window_causal_mask if kind == SLIDING else create_causal_mask
            mask = make(
                config=self.config,
                inputs_embeds=self.hidden,
                attention_mask=self._keys >= 0,
                past_key_values=self.cache,
                position_ids=None,
                layer_idx=index,
                allow_is_causal_skip=self._bias is None,
            )
            opened = self.blocks is not None
            if opened and not self.blocks_pass_windows:
                mask = self._open_blocks(self._whole(mask))
            if kind == SLIDING:
                mask = self._windowed(mask)
            if self.layout.turns is not None:
                mask = apart(self._whole(mask), self.layout.turns)
            if opened and self.blocks_pass_windows:
                mask = self._open_blocks(self._whole(mask))
            self._masks[kind] = mask if self._bias is None else self._biased(mask, kind, index)
        return self._masks[kind]

    def _windowed(self, mask: Tensor | None) -> Tensor | None:
        """A window counts positions, as a mask on the sequence before any drop would, and not the keys that are left."""
        window = self.config.sliding_window
        if int(self._keys.amax()) < window:
            return mask
        queries, mask = self.hidden.shape[1], self._whole(mask)
        held = self._keys[:, -mask.shape[-1] :]
        near = (self._keys[:, -queries:, None] - held[:, None] < window)[:, None]  # [B, 1, L, keys]
        return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)

    def _whole(self, mask: Tensor | None) -> Tensor:
        """A mask with all its numbers [B, 1, L, keys], where None stands for a plain causal one."""
        if mask is None and self.config._attn_implementation in ("sdpa", "eager"):
            width, queries = self._keys.shape[1], self.hidden.shape[1]
            places = torch.arange(width, device=self._keys.device)
            causal = places <= places[width - queries :, None]
            mask = causal[None, None] & (self._keys >= 0)[:, None, None]
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise ModelError(
                f"attn_implementation {self.config._attn_implementation} takes no mask of single tokens, which windows, "
                "blocks, turns, gates and calibration need with a reduction: take sdpa or eager"
            )
        return mask

    def _open_blocks(self, mask: Tensor) -> Tensor:
        """Let the tokens of a block see each other. Keys of earlier turns are of no block."""
        same = same_block(self.blocks) & self.layout.key_mask[:, None]  # [B, L, L]
        same = torch.nn.functional.pad(same, (mask.shape[-1] - same.shape[-1], 0))[:, None]
        return mask | same if mask.dtype == torch.bool else mask.masked_fill(same, 0.0)

    def _biased(self, mask: Tensor | None, kind: str, index: int) -> Tensor:
        """What is added to logits, as terms of an additive mask."""
        layer = self.layers[index]
        places = lambda: LayerProjections(layer, self.hidden, self.layout, self.angles(index)).places  # noqa: E731
        return self._bias.added_to(self._whole(mask), self.hidden.dtype, kind, places)

    def add(self, features: Tensor) -> None:
        """Add rows of features [M, D] to the states of the tokens they belong to."""
        picked = features.to(self.hidden)[self.rows.clamp(min=0)]
        self.hidden = self.hidden + picked * (self.rows >= 0)[..., None]
