"""Folding dropped tokens into kept ones, as one matrix product per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ops.select import pack, raster_priority

MERGES = ("sum", "neighbours", "average")


def nearest_weights(
    keys: Tensor, weights: Tensor, centres: Tensor, neighbours: int, merge: str, pool: Tensor | None = None
) -> Tensor:
    """Mixing matrix that adds to each centre its most similar other tokens.

    Similarity is the cosine of the keys; neighbours count whether they are kept or dropped themselves, and always with their
    original features.

    Args:
        keys: [N, P, C].
        weights: [N, P], the weight of each token as a neighbour (class attention).
        centres: [N, K] raster indices.
        neighbours: how many each centre takes; capped at the number of others.
        merge: "sum" adds weights[j] * x[j] (released PruMerge), "neighbours" divides these weights by their sum (the line commented
            out in the release), "average" is the weighted mean over the centre and its neighbours.
        pool: [N, M] indices the neighbours are drawn from, beginning with the centres in their order (a token may occur twice); by
            default every token once.

    Returns:
        [N, K, P], to be multiplied with the features.
    """
    if merge not in MERGES:
        raise InputError(f"merge {merge!r} is not one of {', '.join(MERGES)}")
    patches = keys.shape[1]
    unit = F.normalize(keys.float(), dim=-1)
    picked = unit.gather(1, centres[..., None].expand(-1, -1, unit.shape[-1]))  # [N, K, C]
    similarity = picked @ unit.transpose(1, 2)  # [N, K, P]
    if pool is not None:
        similarity = similarity.gather(2, pool[:, None].expand(-1, centres.shape[1], -1))  # [N, K, M]
        itself = torch.arange(centres.shape[1], device=keys.device).expand_as(centres)
    else:
        itself = centres
    similarity = similarity.scatter(2, itself[..., None], -torch.inf)
    near = similarity.topk(min(neighbours, similarity.shape[2] - 1), dim=2).indices  # [N, K, k]
    if pool is not None:
        near = pool[:, None].expand(-1, centres.shape[1], -1).gather(2, near)
    share = weights.float()[:, None].expand(-1, centres.shape[1], -1).gather(2, near)  # [N, K, k]
    own: Tensor | float = 1.0
    if merge == "neighbours":
        share = share / share.sum(dim=2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    elif merge == "average":
        own = weights.float().gather(1, centres)[..., None]
        total = (share.sum(dim=2, keepdim=True) + own).clamp(min=torch.finfo(torch.float32).tiny)
        share, own = share / total, own / total
    mixing = keys.new_zeros(*centres.shape, patches, dtype=torch.float32)
    return mixing.scatter_(2, centres[..., None], own).scatter_add_(2, near, share)


def leftover_weights(weights: Tensor, dropped: Tensor, normalise: bool) -> Tensor:
    """Mixing row of the one token that stands for all dropped ones. [N, P], [N, P] bool -> [N, 1, P]"""
    row = weights.float() * dropped
    if normalise:
        row = row / row.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return row[:, None]


def mix(mixing: Tensor, features: Tensor) -> Tensor:
    """Apply a mixing matrix in float32 and return the features' dtype. [N, K, P], [N, P, C] -> [N, K, C]"""
    return (mixing @ features.float()).to(features.dtype)


def select(features: Tensor, index: Tensor) -> Tensor:
    """Pick tokens unchanged. [N, P, C], [N, K] -> [N, K, C]"""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))


def pick(features: Tensor, keep: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The marked tokens unchanged, in raster order, as a reducer gives them back.

    Args:
        features: [N, P, C].
        keep: [N, P] bool.
        size: K, at least the largest number marked in a row.

    Returns:
        features [N, K, C], valid [N, K] bool, origin [N, K] with -1 where not valid.
    """
    index, valid = pack(keep, raster_priority(keep), size)
    return select(features, index), valid, index.masked_fill(~valid, -1)


def nearest_centres(
    points: Tensor, centres: Tensor, members: Tensor, valid: Tensor | None = None, clusters: Tensor | None = None
) -> Tensor:
    """Which members each centre gathers: every member goes to the centre of highest cosine, ties to the first.

    Args:
        points: [N, P, C], what similarity is measured on.
        centres: [N, K] raster indices.
        members: [N, P] bool, the tokens to be given away; no centre among them.
        valid: [N, K] bool, which centres are real; all of them by default.
        clusters: [N, P] numbers; a member goes to a centre of its own number only. By default to any.

    Returns:
        [N, K, P] float32, a single one in a member's column where it has a centre, zeros everywhere else.
    """
    unit = F.normalize(points.float(), dim=-1)
    similarity = select(unit, centres) @ unit.transpose(1, 2)  # [N, K, P]
    open_to = members[:, None].expand_as(similarity)
    if valid is not None:
        open_to = open_to & valid[..., None]
    if clusters is not None:
        open_to = open_to & (clusters.gather(1, centres)[..., None] == clusters[:, None])
    best = similarity.masked_fill(~open_to, -torch.inf).argmax(dim=1, keepdim=True)  # [N, 1, P]
    return torch.zeros_like(similarity).scatter_(1, best, 1.0) * open_to


def group_weights(gathered: Tensor, centres: Tensor, add: bool = False) -> Tensor:
    """Mixing matrix that folds what a centre gathered into it.

    Args:
        gathered: [N, K, P] of zeros and ones, a centre itself not among what it gathers.
        centres: [N, K] raster indices.
        add: the centre plus the mean of what it gathered, instead of the mean of all of them.

    Returns:
        [N, K, P]; a centre that gathered nothing stays as it is.
    """
    total = gathered.sum(dim=2, keepdim=True)
    own = torch.zeros_like(gathered).scatter_(2, centres[..., None], 1.0)
    return own + gathered / total.clamp(min=1) if add else (own + gathered) / (total + 1)
