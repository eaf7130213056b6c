"""Made-up sequences as decoder pruners see them, with attention computed from made-up queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.contract import Merged, left_of
from llava_prumerge.methods.registry import build_pruner, method_names
from llava_prumerge.ops.layout import TokenLayout

PRUNERS = method_names(DecoderPruner)
HEADS, WIDTH = 4, 32


def shape_of(layers: int = 8, patches: int = 64, reduced: bool = False) -> DecoderShape:
    """A small decoder."""
    return DecoderShape(layers, WIDTH, HEADS, patches, reduced)


def make_tokens(
    visual: Sequence[int] = (64, 64, 64),
    before: int = 3,
    after: Sequence[int] = (6, 4, 9),
    seed: int = 0,
    pad: str = "left",
) -> DecoderTokens:
    """Sequences of `before` text tokens, `visual` image tokens and `after` text tokens, padded to one length.

    What a token is depends on its sequence and place in it alone, not on the batch.
    """
    lengths = [before + image + text for image, text in zip(visual, after, strict=True)]
    longest = max(lengths)
    places = torch.arange(longest)
    starts = torch.tensor([longest - length if pad == "left" else 0 for length in lengths])[:, None]
    own = places - starts  # [B, L] place within the sequence
    real = (own >= 0) & (own < torch.tensor(lengths)[:, None])
    is_image = (own >= before) & (own < before + torch.tensor(visual)[:, None])
    layout = TokenLayout(
        is_image=is_image,
        key_mask=real,
        position_ids=own.clamp(min=0),
        origin=torch.where(is_image, own - before, -1),
        images=torch.tensor([int(image > 0) for image in visual]),
    )
    parts = []
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed + 1000 * row)
        parts.append(torch.randn(length, 3 * WIDTH, generator=generator))
    content = torch.zeros(len(lengths), longest, 3 * WIDTH)
    content[real] = torch.cat(parts)
    return tokens_of(layout, *content.split(WIDTH, dim=-1))


def tokens_of(layout: TokenLayout, hidden: Tensor, queries: Tensor, keys: Tensor) -> DecoderTokens:
    """Tokens whose every layer has the same queries and keys [B, L, D]."""
    queries, keys = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (queries, keys))  # [B, H, L, D/H]

    def attention(layer: int, rows: Tensor) -> Tensor:
        picked = queries.gather(2, rows[:, None, :, None].expand(-1, HEADS, -1, queries.shape[-1]))
        logits = (picked @ keys.transpose(2, 3)).float() / queries.shape[-1] ** 0.5
        seen = layout.key_mask[:, None] & (torch.arange(keys.shape[2], device=keys.device) <= rows[..., None])
        return logits.masked_fill(~seen[:, None], torch.finfo(torch.float32).min).softmax(dim=-1)

    def mean_query(layer: int, weight: Tensor) -> Tensor:
        return (queries.float() * weight[:, None, :, None]).sum(dim=2, keepdim=True) / weight.sum(dim=1).clamp(
            min=1e-9
        )[:, None, None, None]

    def normed() -> Tensor:
        scale = torch.linspace(0.2, 3, hidden.shape[-1]).to(hidden)  # another likeness than of `hidden` itself
        return hidden / hidden.float().square().mean(dim=-1, keepdim=True).add(1e-5).sqrt().to(hidden.dtype) * scale

    def nearness(layer: int, rows: Tensor) -> Tensor:
        angles = layout.position_ids[..., None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
        turned = torch.cat([angles.cos(), angles.sin()], dim=-1)  # [B, L, 8]
        return turned.gather(1, rows[..., None].expand(-1, -1, 8)) @ turned.transpose(1, 2) / 4

    projections = (lambda layer: queries, lambda layer: keys, mean_query)
    return DecoderTokens(hidden, layout, attention, *projections, normed, nearness)


def run(pruner: DecoderPruner, tokens: DecoderTokens) -> list[Tensor]:
    """Visual tokens each sequence has in each layer, [B] per layer, dropped as the model does it."""
    return [layout.is_image.sum(dim=1) for layout in layouts(pruner, tokens)]


def layouts(pruner: DecoderPruner, tokens: DecoderTokens, depth: int = 8) -> list[TokenLayout]:
    """The layout of each layer."""
    seen = []
    for layer in range(depth):
        if layer in pruner.layers:
            keep = pruner(layer, tokens)
            if keep is not None:
                _, mask = left_of(keep, tokens.layout)
                others = tokens.layout.key_mask & ~tokens.layout.is_image
                assert isinstance(keep, Merged) or keep.dtype == torch.bool
                assert mask[others].all(), "text is not a pruner's business"
                tokens = dropped(tokens, keep)
        seen.append(tokens.layout)
    return seen


def dropped(tokens: DecoderTokens, keep: Tensor | Merged) -> DecoderTokens:
    """The tokens that stay, in this and all later layers. A merged one has the queries and keys of its place."""
    flat, layout, hidden, order = [tokens.queries(0), tokens.keys(0)], tokens.layout, tokens.hidden, None
    if isinstance(keep, Merged):
        layout, keep, hidden, order = keep.marked(layout), keep.keep, keep.hidden, keep.order
    queries, keys = (part.transpose(1, 2).flatten(2) for part in flat)
    return tokens_of(*layout.compact(keep, hidden, queries, keys, order=order))


def build(name: str, shape: DecoderShape | None = None, **settings: Any) -> DecoderPruner:
    """A pruner in evaluation mode, its parameters always the same."""
    torch.manual_seed(0)
    return build_pruner({"name": name, **settings}, shape or shape_of()).eval()


def with_layout(tokens: DecoderTokens, **changes: Any) -> DecoderTokens:
    """The same tokens with another layout."""
    queries, keys = (part.transpose(1, 2).flatten(2) for part in (tokens.queries(0), tokens.keys(0)))
    return tokens_of(replace(tokens.layout, **changes), tokens.hidden, queries, keys)
