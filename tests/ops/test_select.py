"""Masks and indices against plain Python."""

from __future__ import annotations

import pytest
import torch

from llava_prumerge.methods.vision.random import splitmix
from llava_prumerge.ops.cells import cell_rows, lay_cells, rectangle
from llava_prumerge.ops.select import (
    even_mask,
    pack,
    raster_priority,
    spread_index,
    stride_mask,
    top_mask,
)


def test_top_mask_gives_ties_to_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    mask = top_mask(scores, torch.tensor([2, 3]))
    assert mask.tolist() == [[False, True, True, False], [True, True, True, False]]
    assert top_mask(scores, 0).sum() == 0 and top_mask(scores, 9).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 100])
def test_even_mask_is_exact_and_reaches_the_last(count: int) -> None:
    candidates = torch.rand(20, 30, generator=torch.Generator().manual_seed(count)) < 0.3
    mask = even_mask(candidates, torch.full((20,), count))
    assert (mask <= candidates).all()
    total = candidates.sum(dim=1)
    assert torch.equal(mask.sum(dim=1), total.clamp(max=count))
    for row, chosen in zip(candidates, mask):
        places = row.nonzero()[:, 0].tolist()
        picks = [places.index(i) for i in chosen.nonzero()[:, 0].tolist()]
        if picks:
            assert picks[-1] == len(places) - 1
            gaps = torch.tensor([-1, *picks]).diff()
            assert gaps.max() - gaps.min() <= 1


def test_stride_mask_is_a_range() -> None:
    mask = stride_mask(torch.tensor([1, 4, 30]), 11, 12)
    assert [row.nonzero()[:, 0].tolist() for row in mask] == [list(range(0, 11, step)) for step in (1, 4, 30)]


@pytest.mark.parametrize(
    "count, cells", [(40, (5, 8)), (36, (6, 6)), (1, (1, 1)), (24, (4, 6)), (576, (24, 24)), (46, (2, 23))]
)
def test_rectangle(count: int, cells: tuple[int, int]) -> None:
    assert rectangle(count, 24, 24) == cells


def test_rectangle_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="budget 37 is not rows x columns of a grid within 24 x 24"):
        rectangle(37, 24, 24)


def test_pack_orders_and_pads() -> None:
    keep = torch.tensor([[True, False, True, True], [False, True, False, False]])
    index, valid = pack(keep, torch.tensor([[0.1, 9.0, 0.3, 0.2], [1.0, 1.0, 1.0, 1.0]]), 3)
    assert index[0].tolist() == [2, 3, 0] and valid.tolist() == [[True] * 3, [True, False, False]]
    assert index[1, 0] == 1
    assert pack(keep, raster_priority(keep), 3)[0][0].tolist() == [0, 2, 3]


def test_spread_index_takes_the_middle_of_equal_runs() -> None:
    index, valid = spread_index(torch.tensor([4, 1, 12]), 12, 12)
    assert index[0, :4].tolist() == [1, 4, 7, 10] and index[1, 0] == 6 and index[2].tolist() == list(range(12))
    assert valid.sum(dim=1).tolist() == [4, 1, 12]


def test_splitmix_is_the_published_generator() -> None:
    """First outputs of splitmix64 from seed 1234567, from the reference C program."""
    steps = torch.arange(3) * -0x61C8864680B583EB + 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value % 2**64 for value in splitmix(steps).tolist()] == expected


@pytest.mark.parametrize("grid", [(24, 24), (12, 9), (1, 7), (7, 1), (5, 16)])
def test_cells_of_any_number_are_exact_distinct_and_in_raster_order(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    counts = torch.cat([torch.arange(1, patches + 1, 1 + patches // 50), torch.tensor([patches])])
    rows = cell_rows(counts, *grid)
    cells = lay_cells(counts, rows, patches, grid)
    centres, averages = cells.centres(), cells.averages()
    for count, valid, centre, average in zip(counts.tolist(), cells.valid, centres, averages):
        assert int(valid.sum()) == count
        assert (centre[:count].diff() > 0).all() and centre[count - 1] < patches
        torch.testing.assert_close(average[:count].sum(dim=1), torch.ones(count))
        assert (average[:count].sum(dim=0) > 0).all(), "a patch in no cell"
        assert (average[torch.arange(count), centre[:count]] > 0).all()


def test_cells_are_near_to_square() -> None:
    counts = torch.tensor([40, 37, 46, 23, 144, 100])
    assert cell_rows(counts, 24, 24).tolist() == [5, 6, 7, 5, 12, 10]
    assert cell_rows(torch.tensor([8]), 4, 16).tolist() == [1] or cell_rows(torch.tensor([8]), 4, 16).tolist() == [2]
