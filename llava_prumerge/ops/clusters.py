"""Connected clusters of a similarity graph, for a batch of graphs at once and without leaving the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity_graph(points: Tensor, threshold: float) -> Tensor:
    """Graph that joins points whose cosine reaches a threshold, and each to itself. [N, P, C] -> [N, P, P] bool"""
    unit = F.normalize(points.float(), dim=-1)
    joined = unit @ unit.transpose(1, 2) >= threshold
    return joined | joined.transpose(1, 2) | torch.eye(points.shape[1], dtype=torch.bool, device=points.device)


def connected_labels(graph: Tensor, rounds: int) -> Tensor:
    """Number each point with the lowest point of its connected cluster, by label propagation with shortcuts.

    Every round gives the point that a label names the lowest label next to any of its followers, and then follows
    labels twice, so that reach grows by a factor a round: ten rounds serve the longest chains of 576 points. Where the
    rounds are too few a cluster falls into several numbers; two clusters never share one.

    Args:
        graph: [N, P, P] bool, symmetric with a true diagonal.
        rounds: how often.

    Returns:
        [N, P] int64.
    """
    images, points = graph.shape[:2]
    labels = torch.arange(points, device=graph.device).expand(images, -1).contiguous()
    for _ in range(rounds):
        lowest = torch.where(graph, labels[:, None], points).amin(dim=2)  # [N, P] over a point's neighbours
        labels = labels.scatter_reduce(1, labels, lowest, "amin")
        labels = torch.minimum(labels, lowest)
        labels = labels.gather(1, labels)
        labels = labels.gather(1, labels)
    return labels


def membership(labels: Tensor) -> Tensor:
    """One row per cluster number with ones at its members, empty where nobody has it. [N, P] -> [N, P, P] float32"""
    numbers = torch.arange(labels.shape[1], device=labels.device)
    return (labels[:, None] == numbers[:, None]).float()


def best_of_cluster(labels: Tensor, ranks: Tensor) -> Tensor:
    """Mark the member with the lowest rank in every cluster; ranks [N, P] differ within a cluster. -> [N, P] bool"""
    lowest = torch.full_like(ranks, torch.iinfo(ranks.dtype).max).scatter_reduce(1, labels, ranks, "amin")
    return lowest.gather(1, labels) == ranks


def density_peaks(distances: Tensor, real: Tensor, neighbours: Tensor) -> Tensor:
    """How fit each point is as a centre, its density times its distance to denser ones (DPC-KNN, Du et al. 2016).

    The density is exp(-mean of the squared distances to its nearest points, itself among them); of equal densities the point
    with the lower index counts as denser, where released codes add noise. The densest has the distance of its farthest.

    Args:
        distances: [N, M, M] float32.
        real: [N, M] bool, the points there are.
        neighbours: [N] how many nearest points make the density.

    Returns:
        [N, M], -inf where there is no point.
    """
    pairs = real[:, None] & real[..., None]
    near = distances.square().masked_fill(~pairs, torch.inf).sort(dim=2).values
    rank = torch.arange(near.shape[2], device=near.device)
    count = torch.minimum(neighbours, real.sum(dim=1))[:, None, None]
    density = (-near.masked_fill(rank >= count, 0.0).sum(dim=2) / count[..., 0].clamp(min=1)).exp()  # [N, M]
    other, own = density[:, None], density[..., None]
    denser = pairs & ((other > own) | ((other == own) & (rank < rank[:, None])))
    farthest = distances.masked_fill(~pairs, 0.0).amax(dim=2)
    to_denser = distances.masked_fill(~denser, torch.inf).amin(dim=2)
    separation = torch.where(denser.any(dim=2), to_denser, farthest)
    return (density * separation).masked_fill(~real, -torch.inf)


def nearest_peaks(distances: Tensor, real: Tensor, centres: Tensor, valid: Tensor) -> Tensor:
    """Which points are each centre's: the nearest centre's, ties to the first; a centre is its own.

    Args:
        distances: [N, M, M].
        real: [N, M] bool, the points there are.
        centres: [N, K] indices of points.
        valid: [N, K] bool, the centres there are.

    Returns:
        [N, K, M] float32 of zeros and ones, a single one in the column of every point.
    """
    number = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    to_centre = distances.gather(1, centres[..., None].expand(-1, -1, distances.shape[2]))  # [N, K, M]
    nearest = to_centre.masked_fill(~valid[..., None], torch.inf).argmin(dim=1)  # [N, M]
    past_end = centres.masked_fill(~valid, distances.shape[2])  # what is none goes to a place that is cut off
    nearest = F.pad(nearest, (0, 1)).scatter(1, past_end, number)[:, :-1]
    return ((nearest[:, None] == number[..., None]) & real[:, None]).float()
