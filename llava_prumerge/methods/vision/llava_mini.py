"""LLaVA-Mini: one cross-attention makes an image into few tokens, after layers of its own have fused image and text. Trained.

LLaVA-Mini: Efficient Image and Video Large Multimodal Models with One Vision Token, Zhang et al., ICLR 2025 (arXiv
2501.03895; code ictnlp/LLaVA-Mini 47da113). C x C learnt queries with fixed sines of their places attend to the tower's patches, whose
keys have the same table resized to their grid; what comes out goes through the projector. Before the language model, four
layers like its own run over [all projected patches; these tokens; the text], and what they make of the tokens and of the
text takes their places. Answers are neither fused nor seen by the fusion. As in the authors' code. Departures: any
number of tokens, laid out in rows and columns; several images, each image's patches and tokens in their order; a row without
an image is not fused; text that the release masks because its id is 0 or less is masked where it is padding.
High resolution and video (tiles stitched, text averaged over frames) are not here: a tile or frame counts as an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_prumerge.methods.base import Reduced, ReducerSettings, VisionReducer, VisionTokens
from llava_prumerge.methods.cost import CallLimit, TokensLeft
from llava_prumerge.methods.image_tokens import LanguageShape
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.fusion_layers import FusionLayer
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout
from llava_prumerge.ops.select import select
from llava_prumerge.ops.sines import sines

STRONG = 0.02
"""Standard deviation of the queries' start, released."""


@dataclass(frozen=True, kw_only=True)
class LlavaMiniSettings(ReducerSettings):
    """The queries are `budget` in number; null: one, as published."""

    heads: int = setting(8, "of the cross-attention", at_least(1), source="released code")
    layers: int = setting(
        4, "of the fusion before the language model; 0 compresses alone", at_least(0), source="released code"
    )


class Compressor(nn.Module):
    """Queries that attend to patches.

    Args:
        tokens: how many.
        width: C, of the patches.
        heads: of the attention.
    """

    def __init__(self, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.rows = max(rows for rows in range(1, math.isqrt(tokens) + 1) if tokens % rows == 0)
        self.query = nn.Parameter(torch.empty(tokens, width))
        self.attn = CrossAttention(width, heads)
        self.ln_q, self.ln_kv = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, P, C] -> [N, tokens, C]"""
        tokens, width = self.query.shape
        table, there = (part.to(features) for part in tables((self.rows, tokens // self.rows), grid, width))
        values = self.ln_kv(features)
        return self.attn(self.ln_q(self.query) + table, values + there, values)


class CrossAttention(nn.Module):
    """Parameters of torch's MultiheadAttention, for queries that all images share.

    Args:
        width: C.
        heads: of it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, *given: Tensor) -> Tensor:
        """Queries [T, C], keys and values [N, P, C]. -> [N, T, C]"""
        parts = zip(given, self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (F.linear(*part).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in parts)
        query = query.expand(len(key), -1, -1, -1) * query.shape[-1] ** -0.5  # [N, H, T, C/H]
        mixed = (query @ key.transpose(2, 3)).softmax(dim=3) @ value
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


@cache
def tables(own: tuple[int, int], grid: tuple[int, int], width: int) -> tuple[Tensor, Tensor]:
    """Places of the queries [tokens, C], and the same resized to the grid of the patches [P, C]."""
    table = sines(own, width)
    if own == grid:
        return table, table
    square = table.T.reshape(1, width, *own)
    return table, F.interpolate(square, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T.contiguous()


@register("llava_mini")
class LlavaMini(VisionReducer):
    """Compress an image to a few tokens that have read it, and fuse image and text before the language model."""

    paper = "LLaVA-Mini, Zhang et al., ICLR 2025 (arXiv 2501.03895)"
    call_limit = CallLimit(40, why="norms, places and the cross-attention of the compressor")
    settings: LlavaMiniSettings
    compressor: Compressor | None

    def __init__(self, settings: LlavaMiniSettings | None = None) -> None:
        super().__init__(settings)
        self.compressor, self.prefusion = None, nn.ModuleList()

    @property
    def tokens(self) -> int:
        """Of each image."""
        return self.settings.budget or 1

    @property
    def rewrites(self) -> bool:
        """With fusion."""
        return self.settings.layers > 0

    @property
    def later_turns(self) -> str:
        """A later question is fused with the image, too."""
        return "none" if self.rewrites else "images"

    def tokens_left(self, patches: int) -> TokensLeft:
        """As many as it has queries."""
        return TokensLeft(min(self.tokens, patches), "its budget" if self.settings.budget else "its one query")

    def grow(self, shape: LanguageShape) -> None:
        """Make the parameters."""
        if shape.width % self.settings.heads or shape.width % 4:
            raise ReductionError(
                f"{self.name}: heads={self.settings.heads} and places need a tower of another width than {shape.width}"
            )
        self.compressor = Compressor(self.tokens, shape.width, self.settings.heads)
        if shape.hidden:
            parts = shape.hidden, shape.inner, shape.heads, shape.kv_heads, shape.theta, shape.eps
            self.prefusion = nn.ModuleList(FusionLayer(*parts) for _ in range(self.settings.layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values: as released, and linear layers around 0."""
        if self.compressor is None:
            return
        nn.init.normal_(self.compressor.query, std=STRONG)
        nn.init.xavier_uniform_(self.compressor.attn.in_proj_weight)
        for name, value in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(value)
            elif value.dim() == 1:
                nn.init.ones_(value)
            elif "proj.weight" in name:
                nn.init.normal_(value, std=STRONG)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C], which stand for no single patch."""
        images, patches, width = image.features.shape
        if self.compressor is None:
            self.grow_alone(image.features)
        counts = torch.full((images,), min(self.tokens, patches), device=image.features.device)
        kept, compressor = self.width(image, counts), self.compressor
        if compressor is None or width != compressor.query.shape[1]:
            wanted = 0 if compressor is None else compressor.query.shape[1]
            raise ReductionError(f"{self.name}: features are {width} wide, and its queries {wanted}, as the tower's")
        if self.tokens >= patches:  # nothing to compress
            features, origin = image.features, torch.arange(patches, device=counts.device).expand(images, -1)
        else:
            features, origin = compressor(image.features, image.grid), counts.new_full((images, kept), -1)
        return features, torch.ones_like(origin, dtype=torch.bool), origin

    def rewrite(self, hidden: Tensor, layout: TokenLayout, whole: Tensor, there: Tensor) -> Tensor:
        """What the fusion makes of images' tokens and of the text before the language model.

        Args:
            hidden: [B, L, D] embeddings of what a reducer left.
            layout: of these.
            whole: [B, G, D] all projected patches of each sequence's images.
            there: [B, G] bool, which of them there are.
        """
        known, has = layout.key_mask, there.any(dim=1, keepdim=True)
        if layout.shift_labels is not None:  # what is predicted is an answer's
            answers = F.pad(layout.shift_labels[:, :-1] != IGNORE_INDEX, (1, 0))
            known = known & ~answers
        kind = torch.where(layout.is_image, 0, 1).masked_fill(~layout.key_mask, 2)  # tokens of images, text, padding
        order = kind.argsort(dim=1, stable=True)
        real = torch.cat([there, known.gather(1, order)], dim=1)
        states = torch.cat([whole.to(hidden), select(hidden, order)], dim=1)  # [B, G + L, D]
        positions = (real.cumsum(dim=1) - 1).masked_fill(~real, 1)
        index = torch.arange(real.shape[1], device=real.device)
        mask = ((index <= index[:, None]) & real[:, None]) | (index == index[:, None])  # [B, G + L, G + L]
        for layer in self.prefusion:
            states = layer(states, mask[:, None], positions)
        back = order.argsort(dim=1)
        fused = select(states[:, whole.shape[1] :], back)
        return torch.where((known & has)[..., None], fused, hidden)
