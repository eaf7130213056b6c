"""The baselines against what they are called after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from vision_tokens import alone, make_tokens, reduce

from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.registry import build_reducer


@pytest.mark.parametrize("cells", [(5, 8), (8, 5), (6, 6), (6, 7), (1, 1), (24, 24), (7, 24)])
def test_pool_equals_adaptive_average_pooling(cells: tuple[int, int]) -> None:
    image = make_tokens(grid=(24, 24))
    features, valid, origin = build_reducer({"name": "pool", "rows": cells[0], "columns": cells[1]})(image)
    expected = F.adaptive_avg_pool2d(image.features.view(3, 24, 24, -1).permute(0, 3, 1, 2), cells)
    assert valid.all()
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    _, _, picked = build_reducer({"name": "grid", "rows": cells[0], "columns": cells[1]})(image)
    assert torch.equal(origin, picked)


@pytest.mark.parametrize("grid", [(24, 24), (9, 16)])
def test_grid_takes_the_middle_of_each_cell(grid: tuple[int, int]) -> None:
    image = make_tokens(grid=grid)
    features, _, origin = build_reducer({"name": "grid", "rows": 5, "columns": 8})(image)
    rows = [int((r + 0.5) * grid[0] / 5) for r in range(5)]
    columns = [int((c + 0.5) * grid[1] / 8) for c in range(8)]
    assert origin[0].tolist() == [r * grid[1] + c for r in rows for c in columns]
    assert torch.equal(features[1], image.features[1, origin[1]])


@pytest.mark.parametrize(
    "budget, shape", [(40, (5, 8)), (36, (6, 6)), (42, (6, 7)), (35, (5, 7)), (16, (4, 4)), (144, (12, 12))]
)
def test_budget_of_the_papers_grids(budget: int, shape: tuple[int, int]) -> None:
    image = make_tokens(grid=(24, 24))
    by_budget = build_reducer({"name": "grid", "budget": budget})(image)[2]
    assert torch.equal(by_budget, build_reducer({"name": "grid", "rows": shape[0], "columns": shape[1]})(image)[2])


def test_adaptive_baselines_keep_as_many_as_there_are_outliers() -> None:
    image = make_tokens(images=5)
    expected = []
    for row in image.attention().numpy():
        first, third = np.percentile(row, [25, 75])
        expected.append(int((row > third + 1.5 * (third - first)).sum()))
    assert len(set(expected)) > 1
    for name in ("random", "uniform", "grid", "pool", "cls_topk"):
        assert build_reducer({"name": name})(image)[1].sum(dim=1).tolist() == expected, name


def test_random_is_seeded_per_image() -> None:
    image = make_tokens(images=40, grid=(12, 12))
    origins = build_reducer({"name": "random", "budget": 36})(image)[2]
    again = build_reducer({"name": "random", "budget": 36})(image)[2]
    other = build_reducer({"name": "random", "budget": 36, "seed": 1})(image)[2]
    assert torch.equal(origins, again) and not torch.equal(origins, other)
    assert len({tuple(row.tolist()) for row in origins}) == 40
    assert (origins.diff(dim=1) > 0).all()
    turned = alone(image, 7)
    assert torch.equal(build_reducer({"name": "random", "budget": 36})(turned)[2][0], origins[7])


def test_random_is_even_over_patches() -> None:
    """Each patch is drawn by a quarter of the images: binomial, within five deviations."""
    image = make_tokens(images=2000, grid=(12, 12), width=2)
    image.heads = 1
    origins = build_reducer({"name": "random", "budget": 36})(image)[2]
    share = origins.flatten().bincount(minlength=144) / 2000
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_random_without_ids_is_an_error() -> None:
    image = make_tokens()
    image.ids = None
    with pytest.raises(ReductionError, match="random: .* ids"):
        build_reducer({"name": "random", "budget": 3})(image)


def test_uniform_strides_and_first() -> None:
    image = make_tokens(grid=(24, 24))
    stride = build_reducer({"name": "uniform", "budget": 40})(image)[2][0]
    assert stride.tolist() == [int((k + 0.5) * 576 / 40) for k in range(40)]
    first = build_reducer({"name": "uniform", "budget": 40, "sample": "first"})(image)[2][0]
    assert first.tolist() == list(range(40))


def test_cls_topk_takes_the_highest() -> None:
    image = make_tokens()
    expected = image.attention().argsort(dim=1, descending=True)[:, :9]
    assert torch.equal(build_reducer({"name": "cls_topk", "budget": 9})(image)[2], expected)
    raster = build_reducer({"name": "cls_topk", "budget": 9, "order": "raster"})(image)[2]
    assert torch.equal(raster, expected.sort(dim=1).values)


@pytest.mark.parametrize(
    "settings, size",
    [
        ({"budget": 40}, (70, 112)),
        ({"rows": 6, "columns": 7}, (84, 98)),
        ({"budget": 576}, (336, 336)),
        ({"budget": 900}, (336, 336)),
        ({}, (168, 168)),
    ],
)
def test_downsample_asks_for_a_smaller_image(settings: dict[str, int], size: tuple[int, int]) -> None:
    assert build_reducer({"name": "downsample", **settings}).input_size(336, 336, 14) == size
    for name in ("none", "prumerge"):
        assert build_reducer({"name": name}).input_size(336, 336, 14) == (336, 336)


def test_downsample_passes_the_small_towers_tokens_through() -> None:
    image, (features, valid, _) = reduce({"name": "downsample", "budget": 40}, grid=(24, 24))
    assert image.grid == (5, 8) and valid.all() and torch.equal(features, image.features)


def test_downsample_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ReductionError, match="budget 37"):
        build_reducer({"name": "downsample", "budget": 37}).input_size(336, 336, 14)
    with pytest.raises(ReductionError, match="input_size"):
        build_reducer({"name": "downsample", "budget": 40})(make_tokens(grid=(24, 24)))


@pytest.mark.parametrize("name", ["grid", "pool", "downsample"])
@pytest.mark.parametrize(
    "settings, word",
    [
        ({"rows": 5}, "together"),
        ({"rows": 5, "columns": 8, "budget": 40}, "not both"),
        ({"rows": 0, "columns": 8}, "rows 0"),
        ({"rows": 5, "columns": 2.5}, "columns 2.5"),
    ],
)
def test_cells_are_checked(name: str, settings: dict[str, object], word: str) -> None:
    with pytest.raises(ReductionError, match=f"{name}: .*{word}"):
        build_reducer({"name": name, **settings})


def test_cells_that_do_not_fit() -> None:
    with pytest.raises(ReductionError, match="13 x 2 cells do not fit in 12 x 12"):
        build_reducer({"name": "grid", "rows": 13, "columns": 2})(make_tokens())
    with pytest.raises(ReductionError, match="do not fit"):
        build_reducer({"name": "downsample", "rows": 25, "columns": 2}).input_size(336, 336, 14)


@pytest.mark.parametrize(
    "block, word",
    [
        ({"name": "uniform", "sample": "x"}, "stride, first"),
        ({"name": "cls_topk", "order": 3}, "attention, raster"),
        ({"name": "random", "seed": "x"}, "seed 'x'"),
    ],
)
def test_settings_are_checked(block: dict[str, object], word: str) -> None:
    with pytest.raises(ReductionError, match=word):
        build_reducer(block)
