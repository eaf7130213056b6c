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
