"""Greedy choices of a subset of tokens: one token a step, for all images at once; ties go to the lower index.

Every function gives the order of choice, `size` raster indices for each image, no index twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cosines(points: Tensor, others: Tensor | None = None) -> Tensor:
    """Cosine of each point with each other. [N, P, C], [N, R, C] or none -> [N, P, R] or [N, P, P] float32

    Under autocast too: a greedy rule passes an error on to every choice that follows.
    """
    unit = F.normalize(points.float(), dim=-1)
    against = unit if others is None else F.normalize(others.float(), dim=-1)
    with torch.autocast(points.device.type, enabled=False):
        return unit @ against.transpose(1, 2)


def marked(order: Tensor, patches: int) -> Tensor:
    """The chosen tokens as a mask. [N, K] -> [N, P] bool"""
    return torch.zeros(len(order), patches, dtype=torch.bool, device=order.device).scatter_(1, order, True)


def _row(matrix: Tensor, chosen: Tensor) -> Tensor:
    """One row of each matrix. [N, R, P], [N, 1] -> [N, P]"""
    return matrix.gather(1, chosen[..., None].expand(-1, -1, matrix.shape[2]))[:, 0]


def farthest_first(points: Tensor, size: int) -> Tensor:
    """Greedy max-min selection by cosine distance: DivPrune, Eq. 3 (arXiv 2503.02175).

    The first is the token farthest from its nearest other, every next one that whose nearest chosen token is farthest.

    Args:
        points: [N, P, D].
        size: K.

    Returns:
        [N, K] in the order of choice.
    """
    distance = 1 - cosines(points)  # [N, P, P]
    others = torch.eye(points.shape[1], device=points.device) * 4  # more than any distance
    lone = (distance + others).amin(dim=2)  # [N, P] to the nearest other; alone in the image: 4
    keep = torch.zeros_like(lone, dtype=torch.bool)
    nearest = torch.full_like(lone, 4.0)  # to the nearest kept
    order = []
    for step in range(size):
        candidates = (nearest if step else lone).masked_fill(keep, -1.0)
        chosen = candidates.argmax(dim=1, keepdim=True)  # [N, 1]
        keep = keep.scatter(1, chosen, True)
        nearest = torch.minimum(nearest, _row(distance, chosen))
        order.append(chosen)
    return torch.cat(order, dim=1)


def coverage_first(
    covers: Tensor, size: int, weights: Tensor | None = None, add: bool = False, last: Tensor | None = None
) -> Tensor:
    """Greedy maximum coverage: the token that adds most to what is covered comes next.

    A row counts with its best value over the chosen tokens, at least 0; a token's gain is how much it raises these.

    Args:
        covers: [N, R, P], how well each token covers each row.
        size: K.
        weights: [N, P], factors of the gains; by default 1.
        add: weights are added to the gains instead.
        last: [N, P] bool, tokens that are chosen only where no other is left.

    Returns:
        [N, K] in the order of choice.
    """
    best = torch.zeros_like(covers[:, :, :1])  # [N, R, 1]
    taken = torch.zeros_like(covers[:, 0], dtype=torch.bool)
    order = []
    for _ in range(size):
        gain = (covers - best).clamp_(min=0).sum(dim=1)  # [N, P]
        if weights is not None:
            gain = gain + weights if add else gain * weights
        if last is not None:
            gain = gain.masked_fill(last, -1.0)
        chosen = gain.masked_fill(taken, -torch.inf).argmax(dim=1, keepdim=True)  # [N, 1]
        taken = taken.scatter(1, chosen, True)
        best = torch.maximum(best, covers.gather(2, chosen[:, None].expand(-1, covers.shape[1], -1)))
        order.append(chosen)
    return torch.cat(order, dim=1)


def determinant_first(kernel: Tensor, size: int) -> Tensor:
    """Greedy MAP choice of a determinantal point process (Chen et al., NeurIPS 2018, Algorithm 1).

    Each step takes the token that multiplies the determinant of the chosen block most, by an incremental Cholesky
    factor. Where the kernel's rank is used up the rest is taken by what its diagonal has left, so that `size` different
    tokens come out.

    Args:
        kernel: [N, P, P], symmetric and positive semi-definite.
        size: K.

    Returns:
        [N, K] in the order of choice.
    """
    left = kernel.diagonal(dim1=1, dim2=2).float()  # [N, P]
    least = left * 4 * torch.finfo(torch.float32).eps  # of each token's own size: kernels scale rows and columns alike
    factor = torch.zeros_like(kernel[:, :size], dtype=torch.float32)  # [N, K, P]
    order = []
    for step in range(size):
        chosen = left.argmax(dim=1, keepdim=True)  # [N, 1]
        pivot = left.gather(1, chosen)
        of_chosen = factor.gather(2, chosen[:, None].expand(-1, size, -1))  # [N, K, 1]
        scale = pivot.clamp(min=1e-30).rsqrt() * (pivot > least.gather(1, chosen))
        row = (_row(kernel, chosen) - (of_chosen * factor).sum(dim=1)) * scale
        factor[:, step] = row
        left = (left - row.square()).scatter(1, chosen, -torch.inf)
        order.append(chosen)
    return torch.cat(order, dim=1)


def least_alike_first(similarity: Tensor, open_to: Tensor, size: int) -> Tensor:
    """Greedy choice by the mean similarity: the token comes next that is least like the chosen ones on average.

    The first is the one least like all that are open to choice, itself included.

    Args:
        similarity: [N, P, P].
        open_to: [N, P] bool, the tokens that may be chosen; at least `size` in each row.
        size: K.

    Returns:
        [N, K] in the order of choice.
    """
    total = (similarity * open_to[:, None]).sum(dim=2)
    barred = ~open_to
    order = []
    for step in range(size):
        chosen = total.masked_fill(barred, torch.inf).argmin(dim=1, keepdim=True)  # [N, 1]
        barred = barred.scatter(1, chosen, True)
        row = _row(similarity, chosen)
        total = total + row if step else row
        order.append(chosen)
    return torch.cat(order, dim=1)
