"""Reduction inside a vision tower: after each block a reducer may drop patches, and the blocks after it run on fewer.

It sees the projections that the block has just computed, so that asking costs nothing. Images may keep different numbers of
patches; shorter ones are padded, and the padding is masked in the blocks to come.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.methods.base import VisionReducer
from llava_prumerge.methods.image_tokens import TowerBlock
from llava_prumerge.ops.select import pack, raster_priority, select


def can_be_cut(block: nn.Module, attention: str) -> bool:
    """Whether a block takes the mask of ragged images, and its attention has the projections that are asked.

    Args:
        block: of a tower; all of its blocks are alike.
        attention: where the block has it.
    """
    told = inspect.signature(block.forward).parameters
    projections = block.get_submodule(attention)
    return "attention_mask" in told and all(hasattr(projections, f"{part}_proj") for part in "qkv")


@contextmanager
def watched(attention: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The outputs of an attention's three projections while it runs: "q", "k" and "v", [N, S, C]."""
    seen: dict[str, Tensor] = {}
    handles = []
    for part in "qkv":

        def note(_: nn.Module, given: Any, output: Tensor, part: str = part) -> None:
            seen[part] = output

        handles.append(attention.get_submodule(f"{part}_proj").register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def cut_blocks(
    blocks: Sequence[nn.Module], hidden: Tensor, heads: int, cutter: VisionReducer, attention: str = "self_attn"
) -> tuple[Tensor, Tensor, Tensor]:
    """Run blocks and ask the reducer after each but the last.

    Args:
        blocks: those that make the features, the last one included.
        hidden: [N, 1 + P, C] their input, the class token first.
        heads: of each block.
        cutter: says in `cut` what stays.
        attention: where a block has it.

    Returns:
        [N, 1 + K, C] what the last block makes, its input, and the raster index of each patch that is left [N, K].
    """
    images, patches = len(hidden), hidden.shape[1] - 1
    origin = torch.arange(patches, device=hidden.device).expand(images, -1)
    real, carried, before = torch.ones_like(origin, dtype=torch.bool), None, hidden
    ragged = False
    for number, block in enumerate(blocks):
        before = hidden
        with watched(block.get_submodule(attention)) as seen:
            hidden = block(hidden, attention_mask=_mask(real, hidden.dtype) if ragged else None)
        left = len(blocks) - 2 - number
        if left < 0:
            break
        projections = seen["q"][:, :1], seen["k"], seen["v"]
        keep, carried = cutter.cut(TowerBlock(*projections, heads, real, carried, left, patches))
        if keep is None:
            continue
        counts = (keep & real).sum(dim=1)
        longest, shortest = torch.stack([counts.amax(), counts.amin()]).tolist()
        index, real = pack(keep & real, raster_priority(real), longest)
        ragged = longest != shortest
        hidden = torch.cat([hidden[:, :1], select(hidden[:, 1:], index)], dim=1)
        origin = origin.gather(1, index)
        carried = None if carried is None else carried.gather(1, index)
    return hidden, before, origin


def _mask(real: Tensor, dtype: torch.dtype) -> Tensor:
    """The class token and real patches are seen. [N, K] -> additive [N, 1, 1 + K, 1 + K]"""
    seen = torch.cat([torch.ones_like(real[:, :1]), real], dim=1)
    added = torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)
    return added[:, None, None].expand(-1, -1, seen.shape[1], -1)
