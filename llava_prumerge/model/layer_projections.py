"""What a pruner may ask of a decoder layer: queries, keys and attention rows, from the layer's own projections."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import repeat_kv

from llava_prumerge.model.key_bias import gate_logits, nearness_logits
from llava_prumerge.ops.layout import Calibration, TokenLayout
from llava_prumerge.ops.select import select

Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding in fewer passes over memory than transformers' own form.

    Args:
        states: [B, H, L, D/H].
        cos, sin: [B or 1, 1, L, R]; channels beyond the first R stay as they are.
    """
    turning = cos.shape[-1]
    half = turning // 2
    lower, upper = states[..., :half], states[..., half:turning]
    turned = torch.addcmul(lower * cos[..., :half], upper, sin[..., :half], value=-1)
    other = torch.addcmul(upper * cos[..., half:], lower, sin[..., half:])
    parts = [turned, other] if turning == states.shape[-1] else [turned, other, states[..., turning:]]
    return torch.cat(parts, dim=-1)


@functools.cache
def rotation(module: str) -> Rotation:
    """How attention of a modelling file turns its states: `rotate`, unless the file's own function gives something else."""
    own = sys.modules[module].apply_rotary_pos_emb
    generator = torch.Generator().manual_seed(0)
    states, angles = (
        torch.randn(1, 2, 3, 8, generator=generator),
        torch.rand(1, 3, 4, generator=generator).repeat(1, 1, 2),
    )
    theirs = own(states, states, angles.cos(), angles.sin())[0]
    if torch.allclose(theirs, rotate(states, angles.cos()[:, None], angles.sin()[:, None]), atol=1e-6):
        return rotate
    return lambda given, cos, sin: own(given, given, cos[:, 0], sin[:, 0])[0]


class LayerProjections:
    """One layer and its input. Nothing is computed before it is asked for, and a full attention matrix never.

    Serves separate and fused projections, norms of queries and keys, partial rotary embeddings, caps on logits and windows.

    Args:
        layer: of the decoder.
        hidden: [B, L, D] its input.
        layout: what each place holds; its gates count.
        rotary: cosines and sines [B or 1, L, R] of the places.
        held: [B, H (keys'), L, D/H] the layer's keys where it has already run with a cache.
        window: positions a query looks back over, its own included; None for all.

    Attributes:
        calibration: of distances (see `model.key_bias`), or None.
    """

    def __init__(
        self,
        layer: nn.Module,
        hidden: Tensor,
        layout: TokenLayout,
        rotary: tuple[Tensor, Tensor],
        held: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        self.attention_module, self.norm = layer.self_attn, layer.input_layernorm
        self.hidden, self.layout, self.rotary, self.held, self.window = hidden, layout, rotary, held, window
        self._blocks: tuple[Tensor, bool] | None = None
        self.calibration: Calibration | None = None
        self.rotate = rotation(type(layer.self_attn).__module__)

    def open_blocks(self, blocks: Tensor, pass_windows: bool) -> None:
        """Tokens of one block [B, L] (-1: of none) all see each other, across the layer's window too or within it."""
        self._blocks = blocks, pass_windows

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.hidden.device

    def _project(self, which: str, normed: Tensor) -> Tensor:
        """ "q" or "k" of states [B, R, D], not yet rotated. -> [B, H, R, D/H]"""
        module = self.attention_module
        if hasattr(module, "qkv_proj"):
            config = module.config
            heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            projected = module.qkv_proj(normed).split([count * module.head_dim for count in heads], dim=-1)
            states = projected["qk".index(which)]
        else:
            states = getattr(module, f"{which}_proj")(normed)
        states = states.unflatten(-1, (-1, module.head_dim))
        norm = getattr(module, f"{which}_norm", None)
        return (states if norm is None else norm(states)).transpose(1, 2)

    @cached_property
    def keys(self) -> Tensor:
        """Rotated keys, as often as there are query heads. [B, H, L, D/H]"""
        keys = self.held
        if keys is None:
            cos, sin = (part[:, None] for part in self.rotary)
            keys = self.rotate(self._project("k", self.norm(self.hidden)), cos, sin)
        return repeat_kv(keys, self.attention_module.num_key_value_groups)

    def queries(self, rows: Tensor | None = None) -> Tensor:
        """Rotated queries of the rows [B, R], or of all. -> [B, H, R, D/H]"""
        hidden, (cos, sin) = self.hidden, self.rotary
        if rows is not None:
            hidden = select(hidden, rows)
            cos, sin = (select(part.expand(len(rows), -1, -1), rows) for part in (cos, sin))
        return self.rotate(self._project("q", self.norm(hidden)), cos[:, None], sin[:, None])

    @cached_property
    def places(self) -> Tensor:
        """The vector of ones turned to each place, of length 1: by their product places are near. [B, L, d] float32"""
        cos, sin = (part.float().expand(len(self.hidden), -1, -1)[:, None] for part in self.rotary)
        ones = cos.new_ones(*cos.shape[:3], self.attention_module.head_dim)
        return F.normalize(self.rotate(ones, cos, sin)[:, 0], dim=-1)

    def nearness(self, rows: Tensor) -> Tensor:
        """How near the rows [B, R] are to all places by rotary position alone: the likeness of a vector of ones turned to
        both, (2 / d) sum_j cos((m - n) theta_j) for heads of width d; 1 at a distance of 0. -> [B, R, L] float32
        """
        return select(self.places, rows) @ self.places.transpose(1, 2)

    @property
    def _mixes(self) -> bool:
        """Whether a rotated query is linear in the normed input: no bias, no norm, and whole heads turned by halves."""
        module = self.attention_module
        linear = getattr(module, "q_proj", None)
        plain = linear is not None and linear.bias is None and getattr(module, "q_norm", None) is None
        return plain and self.rotate is rotate and self.rotary[0].shape[-1] == module.head_dim

    def mean_query(self, weight: Tensor) -> Tensor:
        """The weighted mean of all rotated queries, at the cost of D/H rows in place of L. [B, L] -> [B, H, 1, D/H]

        A rotation turns channel f of a head and channel f + half by one angle, the same in all heads, so that
        sum_i w_i (R_i W x_i)_f = (W sum_i w_i cos_if x_i)_f - (W sum_i w_i sin_if x_i)_(f + half): the sums come before
        the projection. Where fewer than D/H tokens weigh anything, they are projected themselves, and so are all where a
        query is no linear function of its input. Costs one host synchronisation.
        """
        half = self.attention_module.head_dim // 2
        share = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        weighing = share > 0
        few = max(1, int(weighing.sum(dim=1).amax()))
        if few < 2 * half or not self._mixes:
            rows = weighing.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :few]
            queries = self.queries(rows)  # [B, H, few, D/H]
            return share.gather(1, rows).to(queries.dtype)[:, None, None] @ queries
        mixing = torch.cat([part[..., :half] for part in self.rotary], dim=-1) * share[..., None]  # [B, L, 2 half]
        mixed = mixing.transpose(1, 2).to(self.hidden.dtype) @ self.norm(self.hidden)  # [B, 2 half, D]
        projected = self._project("q", mixed).unflatten(2, (2, half))  # [B, H, 2, half, D/H]
        cos, sin = projected.unbind(dim=2)
        lower, upper = ((part[..., :half], part[..., half:]) for part in (cos, sin))
        pick = lambda square: square.diagonal(dim1=-2, dim2=-1)  # noqa: E731  the channel whose angle mixed it
        return torch.cat([pick(lower[0]) - pick(upper[1]), pick(lower[1]) + pick(upper[0])], dim=-1)[:, :, None]

    def attention(self, rows: Tensor) -> Tensor:
        """Softmax attention of the query rows [B, R], as the layer computes it, float32. -> [B, H, R, L]"""
        queries = self.queries(rows) * self.attention_module.scaling
        logits = (queries @ self.keys.transpose(2, 3)).float()  # [B, H, R, L]
        cap = getattr(self.attention_module, "attn_logit_softcapping", None)
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        if self.layout.key_weight is not None:
            logits = logits + gate_logits(self.layout.key_weight)[:, None, None]
        if self.calibration is not None:
            added = nearness_logits(self.nearness(rows), self.calibration, self.layout.is_image)
            logits = logits + added[:, None]
        places = torch.arange(self.hidden.shape[1], device=rows.device)
        later = places > rows[..., None]  # [B, R, L]
        far = torch.zeros_like(later)
        if self.window is not None:
            at = self.layout.position_ids
            far = at.gather(1, rows)[..., None] - at[:, None] >= self.window
        if self._blocks is not None:
            blocks, pass_windows = self._blocks
            own = blocks.gather(1, rows)[..., None]  # [B, R, 1]
            apart = (own != blocks[:, None]) | (own < 0)
            later, far = later & apart, far & apart if pass_windows else far
        hidden_keys = ~self.layout.key_mask[:, None] | later | far
        return logits.masked_fill_(hidden_keys[:, None], torch.finfo(torch.float32).min).softmax(dim=-1)
