"""Decoder layers of Llama's kind for methods that bring some of their own: norm, rotary attention, gated MLP. Plain torch.

Parameters have the names of transformers' LlamaDecoderLayer, so that released weights fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(nn.Module):
    """Root mean square norm, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> the same"""
        wide = states.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(states.dtype)


class Attention(nn.Module):
    """Rotary attention; keys and values may have fewer heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, theta: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.theta, size = heads, kv_heads, theta, width // heads
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.o_proj = nn.Linear(heads * size, width, bias=False)

    def forward(self, states: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """[B, L, D], bool [B, 1, L, L], [B, L] -> [B, L, D]"""
        query, key, value = (
            part(states).unflatten(2, (heads, -1)).transpose(1, 2)
            for part, heads in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        size = query.shape[3]
        rates = self.theta ** (-torch.arange(0, size, 2, device=states.device).float() / size)
        angles = (positions[..., None].float() * rates).repeat(1, 1, 2)[:, None]  # [B, 1, L, D/H]
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)

        def turned(part: Tensor) -> Tensor:
            lower, upper = part.chunk(2, dim=3)
            return part * cos + torch.cat([-upper, lower], dim=3) * sin

        key, value = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (turned(key), value))
        mixed = F.scaled_dot_product_attention(turned(query), key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> the same"""
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))


class FusionLayer(nn.Module):
    """One layer.

    Args:
        width: D.
        inner: of the MLP.
        heads, kv_heads: of attention.
        theta: base of the rotary embedding.
        eps: of the norms.
    """

    def __init__(self, width: int, inner: int, heads: int, kv_heads: int, theta: float, eps: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads, kv_heads, theta), GatedMLP(width, inner)
        self.input_layernorm, self.post_attention_layernorm = Norm(width, eps), Norm(width, eps)

    def forward(self, states: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """[B, L, D], bool [B, 1, L, L] (True: seen), [B, L] -> [B, L, D]"""
        states = states + self.self_attn(self.input_layernorm(states), mask, positions)
        return states + self.mlp(self.post_attention_layernorm(states))
