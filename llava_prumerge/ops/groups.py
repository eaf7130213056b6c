"""Groups of tokens: cells of the image or clusters of features, each with a quota of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_labels(patches: int, chunks: int, device: torch.device) -> Tensor:
    """Cut the raster into consecutive chunks; the first ones get what cannot be shared evenly. -> [P] int64"""
    place, most = torch.arange(patches, device=device), -(-patches // chunks)
    longer = (patches - (most - 1) * chunks) * most  # patches in chunks of the greater length
    return torch.where(place < longer, place // most, chunks - 1 - (patches - 1 - place) // max(most - 1, 1))


def cell_labels(grid: tuple[int, int], rows: int, columns: int, device: torch.device) -> Tensor:
    """Cut the grid into rows x columns cells as equal as can be, numbered in raster order. -> [P] int64"""
    height, width = grid
    down = torch.arange(height, device=device) * rows // height
    across = torch.arange(width, device=device) * columns // width
    return (down[:, None] * columns + across).flatten()


def group_sums(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sum of each group's values. [N, P], [N, P] int64 below `count` -> [N, G]"""
    return values.new_zeros(len(values), count).scatter_add_(1, groups, values)


def ranks_within(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """Each token's place in its own group, 0 for the highest score; ties go to the lower index.

    Args:
        scores: [N, P].
        groups: [N, P] int64 below `count`.
        count: G.

    Returns:
        [N, P] int64.
    """
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    by_group = groups.gather(1, by_score).sort(dim=1, stable=True)
    order = by_score.gather(1, by_group.indices)  # [N, P] tokens, group after group
    sizes = group_sums(torch.ones_like(groups), groups, count)
    begins = sizes.cumsum(dim=1) - sizes  # [N, G]
    places = torch.arange(scores.shape[1], device=scores.device) - begins.gather(1, by_group.values)
    return torch.zeros_like(order).scatter_(1, order, places)


def shared_out(weights: Tensor, total: Tensor | int) -> Tensor:
    """Share a number out by weights in whole parts, rounded down; the heaviest get one more each while some is missing.

    Args:
        weights: [N, G], not negative; they sum to at most 1.
        total: what is shared out, [N, 1] or a number.

    Returns:
        [N, G] int64; it sums to `total` where the weights sum to 1.
    """
    parts = (weights * total).floor().long()
    missing = total - parts.sum(dim=1, keepdim=True)
    place = weights.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return parts + (place < missing)


def filled_in_turn(room: Tensor, wanted: Tensor) -> Tensor:
    """Fill groups one after the other until enough is placed. room [N, G] int64, wanted [N, 1] int64 -> [N, G] int64"""
    before = room.cumsum(dim=1) - room
    return torch.minimum((wanted - before).clamp(min=0), room)


def component_labels(points: Tensor, components: int) -> tuple[Tensor, int]:
    """Group points by the principal component on which they load most, of an exact singular value decomposition.

    Every point is a column of the matrix that is decomposed, centred over its own channels.

    Args:
        points: [N, P, C] float32.
        components: how many are wanted; there are at most min(P, C).

    Returns:
        [N, P] int64, and how many components there are.
    """
    centred = points - points.mean(dim=2, keepdim=True)
    loads = torch.linalg.svd(centred, full_matrices=False).U[..., :components]  # [N, P, G]
    return loads.abs().argmax(dim=2), loads.shape[2]


def held_back(rivals: Tensor, place: Tensor) -> Tensor:
    """Greedy suppression: in the order of places each token that is not held back holds back its later rivals.

    Args:
        rivals: [N, P, P] bool.
        place: [N, P] int64, a permutation in each row.

    Returns:
        [N, P] bool.
    """
    order = place.argsort(dim=1)
    ahead = order[:, :, None].expand_as(rivals)
    later = rivals.gather(1, ahead).gather(2, ahead.transpose(1, 2)).triu(1)  # [N, P, P] in the order of places
    held = torch.zeros_like(place, dtype=torch.bool)
    for step in range(place.shape[1]):
        held = held | (later[:, step] & ~held[:, step : step + 1])
    return held.gather(1, place)
