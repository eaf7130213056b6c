"""What a reducer that rewrites embeddings before the language model is given: all projected patches of each sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import VisionReducer
from llava_prumerge.methods.image_tokens import LanguageShape
from llava_prumerge.ops.layout import TokenLayout


def language_shape(config: Any) -> LanguageShape:
    """The sizes that parameters of a reducer may need."""
    text, vision = config.get_text_config(), config.vision_config
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)  # of models with one for each kind of layer
    return LanguageShape(
        width=getattr(vision, "hidden_size", 0) or getattr(vision, "embed_dim", 0),
        hidden=text.hidden_size,
        inner=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        theta=float(rope.get("rope_theta") or getattr(text, "rope_theta", 1e4)),
        eps=getattr(text, "rms_norm_eps", 1e-5),
    )


def by_image(groups: Sequence[Tensor], owners: Sequence[Tensor], images: int) -> list[Tensor]:
    """Projected patches of groups of tiles [N, P, D] by the image each tile is of [N]. -> [G, D] of each image"""
    found: list[list[Tensor]] = [[] for _ in range(images)]
    for group, owner in zip(groups, owners, strict=True):
        for tile, at in zip(group, owner.tolist(), strict=True):
            found[at].append(tile)
    return [torch.cat(tiles) for tiles in found]


def by_sequence(whole: Sequence[Tensor], rows: Sequence[int], batch: int) -> tuple[Tensor, Tensor]:
    """What images [G, D] hold, by the row each stands in. -> [B, G, D] and which are there [B, G] bool"""
    held = [[one for one, at in zip(whole, rows, strict=True) if at == row] for row in range(batch)]
    blank = whole[0][:0]
    joined = [torch.cat([blank, *parts]) for parts in held]
    padded = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)
    counts = torch.tensor([len(one) for one in joined], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]


def rewriting(
    reducer: VisionReducer, outputs: Sequence[tuple[Any, Tensor]], batch: int
) -> Callable[[Tensor, TokenLayout], Tensor] | None:
    """What the decoder is to do before its first layer. Costs a host synchronisation.

    Args:
        reducer: that rewrites.
        outputs: of each modality what was made of its images, and its placeholders [B, L] bool.
        batch: B.
    """
    whole: list[Tensor] = []
    rows: list[int] = []
    for output, spots in outputs:
        if getattr(output, "whole", None) is None:
            continue
        at, begin = spots.nonzero()[:, 0].tolist(), 0
        for one, length in zip(output.whole, output.visual_tokens.lengths, strict=True):
            whole.append(one)
            rows.append(at[begin])
            begin += length
    if not whole:
        return None
    joined, there = by_sequence(whole, rows, batch)
    return lambda hidden, layout: reducer.rewrite(hidden, layout, joined, there)


def touched(reducer: VisionReducer, output: Any) -> Tensor:
    """A sum by way of what rewrites, for a batch without images: all ranks run the same modules."""
    states, whole = torch.cat(list(output.pooler_output))[None], output.whole[0][None]
    yes = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    blank = torch.zeros_like(yes, dtype=torch.long)
    return reducer.rewrite(states, TokenLayout(yes, yes, blank, blank), whole, yes.new_ones(whole.shape[:2])).sum()
