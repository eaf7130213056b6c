"""Choosing tokens without loops over images or tokens: masks in, ordered indices out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ground.errors import InputError


def ranks_of(scores: Tensor) -> Tensor:
    """Each entry's place in its row, 0 for the highest score; ties go to the lower index. [..., P] -> [..., P] int64"""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def top_mask(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Mark each row's `counts` highest scores; ties go to the lower index. [N, P], [N] -> [N, P] bool"""
    if isinstance(counts, int):
        first = scores.argsort(dim=-1, descending=True, stable=True)[..., :counts]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, first, True)
    return ranks_of(scores) < counts[:, None]


def even_mask(candidates: Tensor, counts: Tensor | int) -> Tensor:
    """Mark `counts` of each row's candidates, evenly spaced in their order and always reaching the last one.

    Args:
        candidates: [N, P] bool.
        counts: [N] or a number; capped at the number of candidates.

    Returns:
        [N, P] bool with exactly min(counts, candidates) marks per row.
    """
    after = candidates.cumsum(dim=1)  # [N, P], rank among the candidates from 1
    total = after[:, -1:]
    wanted = total.clamp(max=counts) if isinstance(counts, int) else torch.minimum(counts[:, None], total)
    made = F.pad(after * wanted // total.clamp(min=1), (1, 0))  # [N, P + 1], marks made before each
    return made[:, 1:] > made[:, :-1]


def stride_mask(strides: Tensor, stop: int, size: int) -> Tensor:
    """Mark every `strides[n]`-th index below `stop`, from 0. [N] -> [N, size] bool"""
    index = torch.arange(stop, device=strides.device)
    return F.pad(index % strides[:, None] == 0, (0, size - stop))


def rectangle(count: int, height: int, width: int) -> tuple[int, int]:
    """The most nearly square grid of exactly `count` cells that fits into height x width, as (rows, columns).

    Raises:
        ValueError: no such grid exists (a prime larger than a side, say).
    """
    fitting = [(rows, count // rows) for rows in range(1, height + 1) if count % rows == 0 and count // rows <= width]
    if not fitting:
        raise InputError(f"budget {count} is not rows x columns of a grid within {height} x {width}")
    return min(fitting, key=lambda cells: abs(cells[0] - cells[1]))


def pack(keep: Tensor, priority: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices of the kept tokens in falling priority, ragged rows padded at the end.

    Args:
        keep: [N, P] bool.
        priority: [N, P]; ties go to the lower index.
        size: K, at least the largest number kept in a row.

    Returns:
        index [N, K] (padding repeats some dropped token) and valid [N, K] bool.
    """
    order = priority.float().masked_fill(~keep, -torch.inf).argsort(dim=1, descending=True, stable=True)
    index = order[:, :size]
    return index, keep.gather(1, index)


def raster_priority(keep: Tensor, first: int = 0) -> Tensor:
    """A priority for `pack` that gives raster order, falling by 1 from that of the first patch. [N, P]"""
    last = first - keep.shape[1]
    return torch.arange(first, last, -1, device=keep.device, dtype=torch.float32).expand(keep.shape)


def spread_index(counts: Tensor, size: int, patches: int) -> tuple[Tensor, Tensor]:
    """Indices in the middle of `counts` equal runs of the raster, ragged rows padded at the end.

    Args:
        counts: [N], at most patches.
        size: K, at least the largest count.
        patches: P.

    Returns:
        index [N, K] and valid [N, K] bool.
    """
    number = torch.arange(size, device=counts.device)
    counts = counts[:, None]
    index = (2 * number + 1) * patches // (2 * counts.clamp(min=1))
    return index.clamp(max=patches - 1), number < counts


_GOLDEN_RATIO = -0x61C8864680B583EB  # splitmix64's constants as signed numbers
_FIRST_FACTOR = -0x40A7B892E31B1A47
_SECOND_FACTOR = -0x6B2FB644ECCEEE15


def splitmix(numbers: Tensor) -> Tensor:
    """Scramble int64 numbers one by one (splitmix64): the same on every device, in every batch. [...] -> [...]"""
    numbers = numbers + _GOLDEN_RATIO
    numbers = (numbers ^ _shift_right(numbers, 30)) * _FIRST_FACTOR
    numbers = (numbers ^ _shift_right(numbers, 27)) * _SECOND_FACTOR
    return numbers ^ _shift_right(numbers, 31)


def _shift_right(numbers: Tensor, places: int) -> Tensor:
    """Logical shift; torch's own copies the sign bit."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
