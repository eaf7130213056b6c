"""Density peaks against loops, one point at a time, and against the clusters of released code."""

from __future__ import annotations

import math

import pytest
import torch

from llava_prumerge.ops.clusters import density_peaks, nearest_peaks


def loops(distances: list[list[float]], neighbours: int) -> list[float]:
    """The rule for one set of points."""
    number = len(distances)
    density = [
        math.exp(-sum(sorted(d * d for d in row)[:neighbours]) / min(neighbours, number)) for row in distances
    ]  # the point itself is among its nearest
    found = []
    for one in range(number):
        denser = [
            distances[one][other]
            for other in range(number)
            if density[other] > density[one] or (density[other] == density[one] and other < one)
        ]
        found.append(density[one] * (min(denser) if denser else max(distances[one])))
    return found


@pytest.mark.parametrize("sizes, neighbours", [((9, 9, 9), (3, 3, 3)), ((9, 4, 1), (2, 5, 1)), ((2, 3, 2), (2, 2, 1))])
def test_it_equals_the_loops_whatever_else_is_in_the_batch(sizes: tuple[int, ...], neighbours: tuple[int, ...]) -> None:
    points = torch.randn(3, max(sizes), 5, generator=torch.Generator().manual_seed(1))
    distances = torch.cdist(points, points)
    distances = (distances + distances.transpose(1, 2)) / 2 * (1 - torch.eye(max(sizes)))
    real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    found = density_peaks(distances, real, torch.tensor(neighbours))
    for row, size in enumerate(sizes):
        wanted = loops(distances[row, :size, :size].tolist(), neighbours[row])
        torch.testing.assert_close(found[row, :size], torch.tensor(wanted))
        assert (found[row, size:] == -math.inf).all()


def test_every_point_goes_to_the_nearest_centre_and_a_centre_to_itself() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [5.0], [6.0], [9.0]])[None]
    distances, real = torch.cdist(points, points), torch.tensor([[True] * 5 + [False]])
    centres, valid = torch.tensor([[4, 1, 0]]), torch.tensor([[True, True, False]])
    members = nearest_peaks(distances, real, centres, valid)
    assert members[0].tolist() == [[0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0] * 6]
    doubles = nearest_peaks(distances, real, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    assert doubles[0, :, :2].tolist() == [[1, 0], [0, 1]], "each of two equal centres is its own"
