"""The tokens that a stretch of decoder layers sees, between two drops: their layout, positions, masks and rotary angles."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from llava_prumerge.model.cache import ReducedCache
from llava_prumerge.model.layer_projections import gate_logits
from llava_prumerge.ops.layout import TokenLayout

SLIDING, FULL = "sliding_attention", "full_attention"


def layer_kind(config: Any, index: int) -> str:
    """Whether a decoder layer looks back over a window or over everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return kinds[index]
    return FULL if getattr(config, "sliding_window", None) is None else SLIDING


def window_of(config: Any, index: int) -> int | None:
    """Positions that a query of a layer looks back over, its own included; None for all."""
    return config.sliding_window if layer_kind(config, index) == SLIDING else None


class Stretch:
    """See the file.

    Attributes:
        layout: of the tokens.
        hidden: [B, L, D] their states.
        rope: [B, L, 3] positions in three parts, of models that have such; None for others.
        rows: [B, L] which row of the features that are added after the first layers is a token's, -1 for none; or None.
        seen: [B, L] visual tokens that inference would have here: fewer than there are where a pruner in training gates them.

    Args:
        decoder: the language model.
        layout, hidden, rope, rows: see above.
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
    ) -> None:
        self.config, self.rotary_emb, self.cache = decoder.config, decoder.rotary_emb, cache
        self.layout, self.hidden, self.rope, self.rows = layout, hidden, rope, rows
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
            for name in ("rope", "rows", "seen"):
                state = getattr(self, name)
                setattr(self, name, None if state is None else state.to(device))

    def begin(self, index: int) -> None:
        """Layers from `index` on see these tokens: from here on masks and keys are theirs."""
        places = self.layout.position_ids.masked_fill(~self.layout.key_mask, -1)
        if self.cache is not None:
            places = self.cache.extend(index, places, self.layout.next_position())
        self._keys, self._masks = places, {}
        self._angles = {}

    def drop(self, keep: Tensor, start: Tensor | int | None = None) -> None:
        """Keep some tokens [B, L]; with a start ([B, 1] or a number) positions are counted anew from there."""
        states = {name: state for name in ("rope", "rows") if (state := getattr(self, name)) is not None}
        self.layout, self.hidden, *moved = self.layout.compact(keep, self.hidden, *states.values())
        for name, state in zip(states, moved, strict=True):
            setattr(self, name, state)
        if start is not None and self.rope is None:  # positions in three parts are places in the image: they stay
            self.layout = self.layout.renumbered(start)
        self.seen = self.layout.is_image

    def obey(self, keep: Tensor, start: Tensor | int | None) -> None:
        """Act on a pruner's answer: a mask drops, gates are set on keys."""
        if keep.dtype.is_floating_point:
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
                allow_is_causal_skip=self.layout.key_weight is None,
            )
            if kind == SLIDING:
                mask = self._windowed(mask)
            self._masks[kind] = mask if self.layout.key_weight is None else self._gated(mask)
        return self._masks[kind]

    def _windowed(self, mask: Tensor | None) -> Tensor | None:
        """A window counts positions, as a mask on the sequence before any drop would, and not the keys that are left."""
        window = self.config.sliding_window
        if int(self._keys.amax()) < window:
            return mask
        queries = self.hidden.shape[1]
        if mask is None and self.config._attn_implementation in ("sdpa", "eager"):  # a plain causal mask
            width = self._keys.shape[1]
            places = torch.arange(width, device=self._keys.device)
            causal = places <= places[width - queries :, None]
            mask = causal[None, None] & (self._keys >= 0)[:, None, None]
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise ValueError(
                f"attn_implementation {self.config._attn_implementation} counts a sliding window in tokens that are left: "
                "with a reduction take sdpa or eager"
            )
        held = self._keys[:, -mask.shape[-1] :]
        near = (self._keys[:, -queries:, None] - held[:, None] < window)[:, None]  # [B, 1, L, keys]
        return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)

    def _gated(self, mask: Tensor | None) -> Tensor:
        """Gates on keys, as terms of an additive mask."""
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise ValueError(
                "soft gates on keys need an additive attention mask: take attn_implementation sdpa or eager"
            )
        dtype = self.hidden.dtype
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return mask + gate_logits(self.layout.key_weight).to(dtype)[:, None, None]

    def add(self, features: Tensor) -> None:
        """Add rows of features [M, D] to the states of the tokens they belong to."""
        picked = features.to(self.hidden)[self.rows.clamp(min=0)]
        self.hidden = self.hidden + picked * (self.rows >= 0)[..., None]
