"""MetaCompress: windows, the mixing matrix and its two terms against loops and torch's pooling."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from vision_tokens import make_tokens

from llava_prumerge.methods.base import ReductionError, VisionTokens
from llava_prumerge.methods.image_tokens import LanguageShape
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.sines import sines


@pytest.mark.parametrize(
    ("grid", "kernel", "stride"), [((24, 24), 3, 3), ((24, 24), 4, 2), ((5, 9), 2, 3), ((2, 7), 3, 3)]
)
def test_windows_are_those_of_torch(grid: tuple[int, int], kernel: int, stride: int) -> None:
    reducer = build_reducer({"name": "meta_compress", "kernel": kernel, "stride": stride})
    pooling, centres = reducer._layout(grid)
    features = torch.randn(1, 3, *grid)
    size = tuple(min(kernel, side) for side in grid)
    wanted = F.avg_pool2d(features, size, stride)
    torch.testing.assert_close(pooling @ features.flatten(2)[0].T, wanted.flatten(2)[0].T)
    assert all(pooling[row, at] > 0 for row, at in enumerate(centres)), "a token's origin is a patch it was asked from"
    if grid[0] == grid[1]:
        left = reducer.tokens_left(grid[0] * grid[1])
        assert left.exact and left.tokens == len(centres)


@pytest.mark.parametrize("places", ["sines", "none"])
def test_the_matrix_and_its_terms_are_the_equations(places: str) -> None:
    """One pair of tokens at a time, with W_q, W_k and beta that have moved."""
    reducer = build_reducer(
        {"name": "meta_compress", "width": 3, "places": places, "lambda_entropy": 0.7, "lambda_collapse": 0.3}
    )
    image = make_tokens(images=2, grid=(4, 6))
    reducer.eval()(image)
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    reducer.train()
    mixed, valid, _ = reducer(image)
    table = sines((4, 6), image.features.shape[2]) if places == "sines" else torch.zeros(24, image.features.shape[2])
    entropies, collapses = [], []
    for number in range(2):
        known = image.features[number] + table
        columns = torch.zeros(24)
        for window, (top, left) in enumerate([(0, 0), (0, 3)]):
            inside = [row * 6 + column for row in range(top, top + 3) for column in range(left, left + 3)]
            asked = reducer.query @ known[inside].mean(dim=0)
            logits = torch.stack([(asked * reducer.beta * (reducer.key @ one)).sum() for one in known]) / math.sqrt(3)
            row = logits.exp() / logits.exp().sum()
            torch.testing.assert_close(mixed[number, window], row @ image.features[number], atol=1e-4, rtol=1e-4)
            entropies.append(-(row * row.log()).sum())
            columns = columns + row
        collapses.append(columns.max())
    wanted = 0.7 * sum(entropies) / 4 + 0.3 * sum(collapses) / 2
    torch.testing.assert_close(reducer.loss(), wanted, atol=1e-4, rtol=1e-4)
    assert valid.shape == (2, 2) and valid.all()
    reducer.forget()
    assert reducer.loss() is None


def test_slopes_stay_finite_where_a_share_is_zero() -> None:
    """Tokens far apart: all of a row goes to one patch, and float32 holds 0 for the others."""
    reducer = build_reducer({"name": "meta_compress", "budget": 4}).train()
    features = 60 * make_tokens(images=2, grid=(6, 6)).features
    reducer(VisionTokens(features, (6, 6)))
    reducer.forget()
    mixed = reducer(VisionTokens(features, (6, 6)))[0]
    assert (reducer.mixing(VisionTokens(features, (6, 6)), reducer._layout((6, 6))[0]) == 0).any()
    (reducer.loss() + mixed.square().mean()).backward()
    for name, weight in reducer.named_parameters():
        assert weight.grad.isfinite().all(), name


def test_it_begins_as_pooling_by_likeness() -> None:
    """W_q = W_k and beta = 1: a token is mixed from the patches that are like its window; with tiny tokens from all alike."""
    reducer = build_reducer({"name": "meta_compress", "budget": 4, "places": "none"})
    kinds = torch.tensor([[0, 1], [2, 0]]).repeat_interleave(3, 0).repeat_interleave(3, 1).flatten()
    features = F.one_hot(kinds, 3).float().repeat_interleave(20, dim=1)[None]  # [1, 36, 60]
    mixed = reducer(VisionTokens(features, (6, 6)))[0][0, :, ::20]  # [4, 3] shares of the kinds
    assert torch.equal(reducer.query, reducer.key) and bool((reducer.beta == 1).all())
    shares = features[0].mean(dim=0)[::20]
    for token, kind in enumerate([0, 1, 2, 0]):
        assert mixed[token, kind] > 1.5 * shares[kind] and (kind == 0 or mixed[token, kind] > mixed[token, 3 - kind])
    even = reducer(VisionTokens(1e-4 * features, (6, 6)))[0]
    torch.testing.assert_close(even, 1e-4 * features.mean(dim=1, keepdim=True).expand_as(even), atol=1e-7, rtol=0)


def test_sites_and_widths() -> None:
    shape = LanguageShape(24, hidden=40, heads=4, kv_heads=4, inner=80)
    for site, wide in (("projected", 40), ("tower", 24)):
        reducer = build_reducer({"name": "meta_compress", "site": site, "budget": 4})
        reducer.grow(shape)
        assert reducer.site == site and reducer.query.shape == (64, wide)
    with pytest.raises(ReductionError, match="meta_compress: features are .* wide, and its weights 24"):
        reducer(make_tokens(images=1, grid=(12, 12)))
    for settings in ({"kernel": 0}, {"stride": 0}, {"width": 0}, {"site": "decoder"}, {"lambda_entropy": -1}):
        with pytest.raises(ReductionError, match=f"meta_compress: .*{next(iter(settings))}"):
            build_reducer({"name": "meta_compress", **settings})
