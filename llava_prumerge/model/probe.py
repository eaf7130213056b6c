"""What a pruner may ask of a decoder layer: queries, keys and attention rows, from the layer's own projections."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import repeat_kv

from llava_prumerge.ops.layout import TokenLayout
from llava_prumerge.ops.merge import select


def gate_logits(weight: Tensor) -> Tensor:
    """What gates in (0, 1] on keys add to attention logits."""
    return weight.clamp(min=1e-6).log()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding in fewer passes over memory than transformers' own form. [B, H, L, D/H], [B or 1, 1, L, D/H] twice"""
    half = states.shape[-1] // 2
    lower, upper = states[..., :half], states[..., half:]
    turned = torch.addcmul(lower * cos[..., :half], upper, sin[..., :half], value=-1)
    return torch.cat([turned, torch.addcmul(upper * cos[..., half:], lower, sin[..., half:])], dim=-1)


class LayerProbe:
    """One layer and its input. Nothing is computed before it is asked for, and a full attention matrix never.

    Args:
        layer: of the decoder.
        hidden: [B, L, D] its input.
        layout: what each place holds; its gates count.
        rotary: cosines and sines [B or 1, L, D/H] of the places.
        held: [B, H (keys'), L, D/H] the layer's keys where it has already run with a cache.
    """

    def __init__(
        self,
        layer: nn.Module,
        hidden: Tensor,
        layout: TokenLayout,
        rotary: tuple[Tensor, Tensor],
        held: Tensor | None = None,
    ) -> None:
        self.attention_module, self.norm = layer.self_attn, layer.input_layernorm
        self.hidden, self.layout, self.rotary, self.held = hidden, layout, rotary, held

    def _heads(self, projected: Tensor) -> Tensor:
        """[B, R, D] -> [B, H, R, D/H]"""
        return projected.unflatten(-1, (-1, self.attention_module.head_dim)).transpose(1, 2)

    @cached_property
    def keys(self) -> Tensor:
        """Rotated keys, as often as there are query heads. [B, H, L, D/H]"""
        keys = self.held
        if keys is None:
            cos, sin = (part[:, None] for part in self.rotary)
            keys = rotate(self._heads(self.attention_module.k_proj(self.norm(self.hidden))), cos, sin)
        return repeat_kv(keys, self.attention_module.num_key_value_groups)

    def queries(self, rows: Tensor | None = None) -> Tensor:
        """Rotated queries of the rows [B, R], or of all. -> [B, H, R, D/H]"""
        hidden, (cos, sin) = self.hidden, self.rotary
        if rows is not None:
            hidden = select(hidden, rows)
            cos, sin = (select(part.expand(len(rows), -1, -1), rows) for part in (cos, sin))
        queries = self._heads(self.attention_module.q_proj(self.norm(hidden)))
        return rotate(queries, cos[:, None], sin[:, None])

    def mean_query(self, weight: Tensor) -> Tensor:
        """The weighted mean of all rotated queries, at the cost of D/H rows in place of L. [B, L] -> [B, H, 1, D/H]

        A rotation turns channel f of a head and channel f + half by one angle, the same in all heads, so that
        sum_i w_i (R_i W x_i)_f = (W sum_i w_i cos_if x_i)_f - (W sum_i w_i sin_if x_i)_(f + half): the sums come before
        the projection. Where fewer than D/H tokens weigh anything, they are projected themselves. Costs one host synchronisation.
        """
        half = self.attention_module.head_dim // 2
        share = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        weighing = share > 0
        few = max(1, int(weighing.sum(dim=1).amax()))
        if few < 2 * half:
            rows = weighing.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :few]
            queries = self.queries(rows)  # [B, H, few, D/H]
            return share.gather(1, rows).to(queries.dtype)[:, None, None] @ queries
        mixing = torch.cat([part[..., :half] for part in self.rotary], dim=-1) * share[..., None]  # [B, L, 2 half]
        mixed = mixing.transpose(1, 2).to(self.hidden.dtype) @ self.norm(self.hidden)  # [B, 2 half, D]
        projected = self._heads(self.attention_module.q_proj(mixed)).unflatten(2, (2, half))  # [B, H, 2, half, D/H]
        cos, sin = projected.unbind(dim=2)
        lower, upper = ((part[..., :half], part[..., half:]) for part in (cos, sin))
        pick = lambda square: square.diagonal(dim1=-2, dim2=-1)  # noqa: E731  the channel whose angle mixed it
        return torch.cat([pick(lower[0]) - pick(upper[1]), pick(lower[1]) + pick(upper[0])], dim=-1)[:, :, None]

    def attention(self, rows: Tensor) -> Tensor:
        """Softmax attention of the query rows [B, R], as the layer computes it, float32. -> [B, H, R, L]"""
        queries = self.queries(rows) * self.attention_module.scaling
        logits = (queries @ self.keys.transpose(2, 3)).float()  # [B, H, R, L]
        if self.layout.key_weight is not None:
            logits = logits + gate_logits(self.layout.key_weight)[:, None, None]
        places = torch.arange(self.hidden.shape[1], device=rows.device)
        hidden_keys = ~self.layout.key_mask[:, None] | (places > rows[..., None])  # [B, R, L]
        return logits.masked_fill_(hidden_keys[:, None], torch.finfo(torch.float32).min).softmax(dim=-1)
