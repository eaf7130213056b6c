"""Greedy choices and groups against loops over single tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_prumerge.ops.greedy import cosines, coverage_first, determinant_first, least_alike_first, marked
from llava_prumerge.ops.groups import (
    cell_labels,
    chunk_labels,
    component_labels,
    filled_in_turn,
    held_back,
    ranks_within,
    shared_out,
)


def points(seed: int, images: int = 3, tokens: int = 13, width: int = 20) -> torch.Tensor:
    return torch.randn(images, tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_coverage_adds_the_largest_gain(add: bool, weighted: bool) -> None:
    covers, weights = points(1, width=9).transpose(1, 2), points(2)[..., 0].abs()
    last = torch.arange(13).expand(3, -1) < 2
    order = coverage_first(covers, 13, weights if weighted else None, add, last)
    for image, rows in enumerate(covers.double().numpy()):
        chosen: list[int] = []
        for _ in range(13):
            gains = {}
            for token in set(range(13)) - set(chosen):
                before = [max([0.0, *(row[one] for one in chosen)]) for row in rows]
                gain = sum(max(0.0, row[token] - best) for row, best in zip(rows, before, strict=True))
                factor = float(weights[image, token]) if weighted else 1.0
                gain = gain * factor if not add or not weighted else gain + factor
                gains[token] = -1.0 if token < 2 else gain
            chosen.append(max(sorted(gains), key=lambda token: round(gains[token], 6)))
        assert order[image].tolist() == chosen


def test_determinants_grow_most() -> None:
    """Against the determinants themselves, as far as they can be told apart."""
    given = points(3)
    kernel = given @ given.transpose(1, 2)
    order = determinant_first(kernel, 8)
    for image, matrix in enumerate(kernel.double().numpy()):
        chosen: list[int] = []
        for _ in range(8):
            of = {one: np.linalg.det(matrix[np.ix_([*chosen, one], [*chosen, one])]) for one in range(13)}
            left = set(of) - set(chosen)
            chosen.append(max(sorted(left), key=lambda one: round(of[one], 6)))
        assert order[image].tolist() == chosen


def test_a_kernel_of_low_rank_still_gives_different_tokens() -> None:
    kernel = cosines(points(4, width=3))
    order = determinant_first(kernel, 13)
    assert order.sort(dim=1).values.tolist() == [list(range(13))] * 3


def test_least_alike_on_average() -> None:
    similarity, free = cosines(points(5)), torch.arange(13).expand(3, -1) % 4 > 0
    order = least_alike_first(similarity, free, 7)
    assert not (marked(order, 13) & ~free).any()
    for image, matrix in enumerate(similarity.double().numpy()):
        allowed = [one for one in range(13) if one % 4]
        chosen = [min(allowed, key=lambda one: np.mean([matrix[one][other] for other in allowed]))]
        while len(chosen) < 7:
            left = [one for one in allowed if one not in chosen]
            chosen.append(min(left, key=lambda one: np.mean([matrix[one][other] for other in chosen])))
        assert order[image].tolist() == chosen


@pytest.mark.parametrize("patches, chunks", [(576, 16), (23, 5), (16, 16), (7, 1), (30, 16)])
def test_chunks_are_numpys(patches: int, chunks: int) -> None:
    expected = [number for number, part in enumerate(np.array_split(range(patches), chunks)) for _ in part]
    assert chunk_labels(patches, chunks, torch.device("cpu")).tolist() == expected


def test_cells_are_rows_and_columns() -> None:
    labels = cell_labels((24, 24), 4, 4, torch.device("cpu")).view(24, 24)
    assert all(labels[row, column] == row // 6 * 4 + column // 6 for row in range(24) for column in range(24))
    assert cell_labels((2, 5), 1, 2, torch.device("cpu")).bincount().tolist() == [6, 4]


def test_ranks_within_groups() -> None:
    groups = torch.randint(0, 4, (3, 13), generator=torch.Generator().manual_seed(6))
    scores = points(7)[..., 0].round()  # with ties
    ranks = ranks_within(scores, groups, 5)
    for image in range(3):
        for token in range(13):
            ahead = [
                other
                for other in range(13)
                if groups[image, other] == groups[image, token]
                and (-float(scores[image, other]), other) < (-float(scores[image, token]), token)
            ]
            assert ranks[image, token] == len(ahead)


def test_numbers_are_shared_out() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3 - 1e-6]])
    assert shared_out(weights, 9).tolist() == [[5, 3, 1], [4, 3, 2]]
    assert filled_in_turn(torch.tensor([[2, 0, 3, 4]]), torch.tensor([[4]])).tolist() == [[2, 0, 2, 0]]


def test_tokens_hold_back_later_rivals() -> None:
    generator = torch.Generator().manual_seed(8)
    rivals = torch.rand(3, 13, 13, generator=generator) < 0.3
    place = torch.rand(3, 13, generator=generator).argsort(dim=1)
    held = held_back(rivals, place)
    for image in range(3):
        free: list[int] = []
        for token in place[image].argsort().tolist():
            if not any(rivals[image, one, token] for one in free):
                free.append(token)
        assert (~held[image]).nonzero()[:, 0].tolist() == sorted(free)


def test_components_are_those_of_the_covariance() -> None:
    given = points(9)
    labels, number = component_labels(given, 4)
    assert number == 4
    for image in range(3):
        matrix = given[image].double().numpy().T  # channels by patches
        centred = matrix - matrix.mean(axis=0)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        loads = np.abs(vectors[:, np.argsort(-values)[:4]])
        assert labels[image].tolist() == loads.argmax(axis=1).tolist()
    assert component_labels(given[:, :, :3], 9)[1] == 3
