"""Every vision reducer on input that is as unhelpful as it can be. Methods are found by walking the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vision_tokens import REDUCERS, alone, blocks, label, make_tokens, peaked_logits, reduce, tower_grid, works

from llava_prumerge.methods.base import Reduced, ReductionError, VisionTokens
from llava_prumerge.methods.registry import build_reducer

every = pytest.mark.parametrize("block", blocks(), ids=label)


def check(block: dict[str, Any], image: VisionTokens, reduced: Reduced) -> None:
    """What holds for whatever a reducer is given."""
    features, valid, origin = reduced
    images, patches = image.features.shape[:2]
    kept = valid.shape[1]
    assert features.shape == (images, kept, image.features.shape[2]) and features.dtype == image.features.dtype
    assert valid.shape == origin.shape == (images, kept) and valid.dtype == torch.bool and origin.dtype == torch.int64
    assert 1 <= kept <= patches, "more tokens than patches would not fit the placeholders"
    assert features.isfinite().all()
    assert (origin >= -1).all() and (origin < patches).all() and (origin[~valid] == -1).all()
    counts = valid.sum(dim=1)
    assert (counts >= 1).all() and int(counts.max()) == kept, "no image may vanish, and no column be empty"
    assert (valid[:, 1:] <= valid[:, :-1]).all(), "kept tokens come first, padding last"
    for row in origin:
        real = row[row >= 0].tolist()
        assert len(real) == len(set(real)), "one patch, two tokens"
    if "budget" in block:
        assert counts.tolist() == [min(block["budget"], patches)] * images


@every
@pytest.mark.parametrize("grid", [(12, 12), (6, 10), (10, 6), (1, 9), (23, 3)])
def test_any_grid(block: dict[str, Any], grid: tuple[int, int]) -> None:
    image, reduced = reduce(block, grid)
    check(block, image, reduced)


LOGITS = {
    "equal": lambda n, p: torch.zeros(n, p),
    "no outlier": lambda n, p: torch.linspace(0, 0.1, p).expand(n, p).clone(),
    "a quarter of equals": lambda n, p: 5.0 * (torch.arange(p) % 5 == 0).float().expand(n, p).clone(),
    "one outlier": lambda n, p: 9.0 * (torch.arange(p) == p - 1).float().expand(n, p).clone(),
    "all mass on one": lambda n, p: 500.0 * (torch.arange(p) == 3).float().expand(n, p).clone(),
    "an image each": lambda n, p: peaked_logits(n, p) * torch.arange(n)[:, None],
}


@every
@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("class_token", [True, False], ids=["class token", "without"])
def test_scores_of_any_shape(block: dict[str, Any], shape: str, class_token: bool) -> None:
    patches = 144 if block["name"] != "downsample" else block.get("budget", 36)
    image, reduced = reduce(block, logits=LOGITS[shape](3, patches), class_token=class_token)
    check(block, image, reduced)


def adapts(block: dict[str, Any]) -> bool:
    """Whether a method has these settings, and the image then decides how many tokens it keeps."""
    return works(block) and not build_reducer(block).tokens_left(144).exact


@pytest.mark.parametrize("name", [name for name in REDUCERS if adapts({"name": name, "iqr_factor": -100.0})])
def test_every_patch_an_outlier(name: str) -> None:
    block = {"name": name, "iqr_factor": -100.0}
    image, reduced = reduce(block)
    check(block, image, reduced)
    assert reduced[1].sum(dim=1).tolist() == [144] * 3


@pytest.mark.parametrize("name", [name for name in REDUCERS if works({"name": name, "budget": 20})])
@pytest.mark.parametrize("budget", [1, 2, 7, 20, 37, 143, 144, 145, 10_000])
def test_budget_is_met_exactly(name: str, budget: int) -> None:
    block = {"name": name, "budget": budget}
    try:
        image, reduced = reduce(block)
    except ReductionError as error:  # a prime cannot be a rectangle
        assert name == "downsample" and budget in (37, 143) and str(budget) in str(error)
        return
    check(block, image, reduced)
    patches = min(budget, 144)
    assert reduced[1].sum(dim=1).tolist() == [patches] * 3


@every
def test_one_patch(block: dict[str, Any]) -> None:
    for class_token in (True, False):
        image, reduced = reduce(block, (1, 1), class_token=class_token)
        check(block, image, reduced)
        assert reduced[1].sum(dim=1).tolist() == [1] * 3


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(block: dict[str, Any], dtype: torch.dtype) -> None:
    image, reduced = reduce(block, dtype=dtype)
    check(block, image, reduced)


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_features_are_an_error_that_names_the_method(block: dict[str, Any], value: float) -> None:
    reducer = build_reducer(block)
    image = make_tokens(grid=tower_grid(reducer, (12, 12)))
    image.features[1, 2, 3] = value
    with pytest.raises(ReductionError, match=f"{block['name']}: .*NaN"):
        reducer(image)


@every
def test_broken_keys_are_an_error_where_they_are_used(block: dict[str, Any]) -> None:
    reducer = build_reducer(block)
    image = make_tokens(grid=tower_grid(reducer, (12, 12)))
    image.projections()[1][1, 2, 3] = float("nan")
    try:
        features, _, _ = reducer(image)
    except ReductionError as error:
        assert str(error).startswith(f"{block['name']}: ")
    else:
        assert features.isfinite().all(), "NaN went through"


@every
def test_batch_equals_single(block: dict[str, Any]) -> None:
    """What an image becomes does not depend on its company."""
    reducer = build_reducer(block)
    image = make_tokens(images=5, grid=tower_grid(reducer, (12, 12)), seed=3)
    features, valid, origin = reducer(image)
    for index in range(5):
        one_features, one_valid, one_origin = reducer(alone(image, index))
        assert one_valid.all()
        assert origin[index][valid[index]].tolist() == one_origin[0].tolist()
        torch.testing.assert_close(features[index][valid[index]], one_features[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("block", [block for block in blocks() if block["name"] != "none"], ids=label)
def test_method_acts(block: dict[str, Any]) -> None:
    image, (_, valid, _) = reduce(block)
    assert int(valid.sum(dim=1).max()) < 144


@every
def test_a_tower_that_gives_no_attention(block: dict[str, Any]) -> None:
    """Methods that do not look at attention work; the others say what they lack."""
    reducer = build_reducer(block)
    image = make_tokens(grid=tower_grid(reducer, (12, 12)))
    image.projections = None
    try:
        reduced = reducer(image)
    except ReductionError as error:
        assert "attention" in str(error)
    else:
        check(block, image, reduced)
