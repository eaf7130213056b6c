"""PruMerge and PruMerge+ against a plain double loop over images and tokens, written from a description of the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from vision_tokens import alone, make_tokens, peaked_logits

from llava_prumerge.methods.base import ReductionError, VisionTokens
from llava_prumerge.methods.registry import build_reducer


def class_attention(image: VisionTokens) -> np.ndarray:
    """Softmax over all tokens, the class token too, of one head of the whole width."""
    queries, keys = (tensor[0].double().numpy() for tensor in image.projections())
    logits = keys @ queries[0] / np.sqrt(keys.shape[1])
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum())[1:]


def outliers(attention: np.ndarray, factor: float = 1.5) -> int:
    first, third = np.percentile(attention, [25, 75])
    return int((attention > third + factor * (third - first)).sum())


def merged(image: VisionTokens, index: list[int], rest: list[int], neighbours: int = 32) -> Tensor:
    """Kept tokens in the order of `index` (it may repeat), each with its nearest others; then the sum over `rest`."""
    attention, features = class_attention(image), image.features[0].double().numpy()
    keys = image.projections()[1][0, 1:].double().numpy()
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    pool = index + rest
    output = []
    for place, i in enumerate(index):
        similarity = [(-float(unit[i] @ unit[j]), other) for other, j in enumerate(pool) if other != place]
        nearest = [pool[other] for _, other in sorted(similarity)[:neighbours]]
        output.append(features[i] + sum(attention[j] * features[j] for j in nearest))
    output.append(sum((attention[j] * features[j] for j in rest), np.zeros(features.shape[1])))
    return torch.from_numpy(np.stack(output)).float()


def by_attention(image: VisionTokens, count: int) -> list[int]:
    return np.argsort(-class_attention(image), kind="stable")[:count].tolist()


def loop_prumerge(image: VisionTokens) -> Tensor:
    patches = image.features.shape[1]
    index = by_attention(image, outliers(class_attention(image)))
    return merged(image, index, [j for j in range(patches) if j not in index])


def loop_prumerge_plus(image: VisionTokens) -> Tensor:
    patches = image.features.shape[1]
    count = outliers(class_attention(image))
    ratio = count / patches
    index = by_attention(image, count)
    index += [j for j in range(0, patches - 1, int(int(1 / ratio) / 3)) if j not in index]
    return merged(image, index, [j for j in range(patches) if j not in index])


def loop_fixed_plus(image: VisionTokens, ratio: float) -> Tensor:
    """The released training mode: duplicates stay, and each takes the lowest-numbered dropped token out of the rest."""
    patches = image.features.shape[1]
    index = by_attention(image, int(patches * ratio)) + list(
        range(int(int(1 / ratio) / 2), patches - 1, int(1 / ratio))
    )
    numbers = sorted(0 if j in index else j for j in range(patches))
    return merged(image, index, numbers[len(index) :])


LOOPS = {"prumerge": loop_prumerge, "prumerge_plus": loop_prumerge_plus}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("method", LOOPS)
def test_ragged_batch_equals_the_loop_on_each_image(method: str, seed: int) -> None:
    grid = ((12, 12), (9, 16), (8, 11))[seed % 3]
    image = make_tokens(images=4, grid=grid, seed=seed)
    features, valid, origin = build_reducer({"name": method})(image)
    assert len(set(valid.sum(dim=1).tolist())) > 1, "the images of this test should keep different numbers"
    for index in range(4):
        expected = LOOPS[method](alone(image, index))
        kept = features[index][valid[index]]
        assert kept.shape == expected.shape
        assert len(kept) < image.features.shape[1], "nothing was dropped"
        torch.testing.assert_close(kept, expected, atol=1e-5, rtol=1e-5)
        assert origin[index][valid[index]].tolist()[-1] == -1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ratio", ["1/8", "1/4"])
def test_fixed_ratio_plus_equals_the_loop_with_duplicates(ratio: str, seed: int) -> None:
    image = make_tokens(images=3, seed=seed)
    features, valid, _ = build_reducer({"name": "prumerge_plus", "ratio": ratio})(image)
    assert valid.all()
    for index in range(3):
        expected = loop_fixed_plus(alone(image, index), 1 / int(ratio[2:]))
        torch.testing.assert_close(features[index], expected, atol=1e-5, rtol=1e-5)


def test_fixed_ratio_keeps_the_same_number_in_every_image() -> None:
    features, valid, _ = build_reducer({"name": "prumerge", "ratio": "1/8"})(make_tokens(images=3))
    assert valid.all() and features.shape[1] == 144 // 8 + 1


@pytest.mark.parametrize(
    "count, kept", [(16, 48), (20, 64), (24, 72), (30, 96), (35, 115), (45, 144), (60, 192), (90, 288), (140, 575)]
)
def test_plus_makes_the_released_staircase(count: int, kept: int) -> None:
    """Grid sizes before overlaps are removed; the overlap is what both share."""
    logits = torch.zeros(1, 576)
    logits[0, torch.randperm(576, generator=torch.Generator().manual_seed(count))[:count]] = 5.0
    image = make_tokens(images=1, grid=(24, 24), logits=logits)
    _, valid, origin = build_reducer({"name": "prumerge_plus"})(image)
    indices = origin[0, : int(valid.sum()) - 1]
    step = int(int(1 / (count / 576)) / 3)
    chosen = {i for i in range(576) if logits[0, i] > 0}
    assert len(range(0, 575, step)) == kept
    assert sorted(indices.tolist()) == sorted(chosen | set(range(0, 575, step)))


@pytest.mark.parametrize("method", LOOPS)
@pytest.mark.parametrize("settings, order", [({}, "attention"), ({"order": "raster"}, "raster")])
def test_order(method: str, settings: dict[str, str], order: str) -> None:
    image = make_tokens(images=1)
    _, valid, origin = build_reducer({"name": method, **settings})(image)
    chosen = origin[0, : int(valid.sum()) - 1]
    if order == "raster":
        assert (chosen.diff() > 0).all()
    else:
        count = int(outliers(class_attention(image)))
        assert chosen[:count].tolist() == by_attention(image, count)
        assert (chosen[count:].diff() > 0).all()


@pytest.mark.parametrize("merge", ["sum", "neighbours", "average"])
def test_merge_normalisations(merge: str) -> None:
    image = make_tokens(images=1)
    features, valid, origin = build_reducer({"name": "prumerge", "merge": merge, "neighbours": 3})(image)
    attention, keys = class_attention(image), image.projections()[1][0, 1:].double().numpy()
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    i = int(origin[0, 0])
    near = [j for j in np.argsort(-(unit @ unit[i]), kind="stable") if j != i][:3]
    x = image.features[0].double().numpy()
    part, total = sum(attention[j] * x[j] for j in near), sum(attention[j] for j in near)
    expected = {
        "sum": x[i] + part,
        "neighbours": x[i] + part / total,
        "average": (attention[i] * x[i] + part) / (attention[i] + total),
    }[merge]
    np.testing.assert_allclose(features[0, 0].numpy(), expected, atol=1e-5)
    assert valid.all()


def test_no_merge_and_no_extra_is_selection() -> None:
    image = make_tokens()
    features, valid, origin = build_reducer({"name": "prumerge", "neighbours": 0, "extra": False})(image)
    other = build_reducer({"name": "cls_topk"})(image)
    for ours, theirs in zip((features, valid, origin), other):
        torch.testing.assert_close(ours[valid] if ours.dim() > 1 else ours, theirs[other[1]])


@pytest.mark.parametrize("method", LOOPS)
def test_where_the_release_divides_by_zero(method: str) -> None:
    """Equal scores have no outlier; what is left still stands for the image."""
    image = make_tokens(images=2, logits=torch.zeros(2, 144))
    features, valid, _ = build_reducer({"name": method})(image)
    counts = valid.sum(dim=1).tolist()
    assert counts == ([1, 1] if method == "prumerge" else [4, 4])
    rest = image.features.sum(dim=1) / 145
    if method == "prumerge":
        torch.testing.assert_close(features[:, 0], rest, atol=1e-5, rtol=1e-5)
    without = build_reducer({"name": method, "extra": False})(image)
    assert (without[1].sum(dim=1) >= 1).all()


def test_extra_token_never_makes_more_tokens_than_patches() -> None:
    """Outliers to the left of everything, and the grid takes the rest: nothing is dropped, so nothing is added."""
    logits = torch.zeros(2, 144)
    logits[0, -30:] = 5.0
    logits[1, :30] = 5.0
    image = make_tokens(images=2, logits=logits)
    features, valid, origin = build_reducer({"name": "prumerge_plus"})(image)
    assert features.shape[1] == 144
    assert valid.sum(dim=1).tolist() == [144, 144]
    assert -1 not in origin[0] and origin[1, -1] == -1


def test_ratio_that_makes_too_many_tokens_is_refused() -> None:
    with pytest.raises(ReductionError, match="prumerge_plus: ratio 0.9"):
        build_reducer({"name": "prumerge_plus", "ratio": 0.9})(make_tokens())


@pytest.mark.parametrize("budget", [1, 2, 37, 40, 143])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_plus_divides_its_budget(budget: int, share: float) -> None:
    image = make_tokens()
    _, valid, origin = build_reducer({"name": "prumerge_plus", "budget": budget, "share": share})(image)
    assert valid.sum(dim=1).tolist() == [budget] * 3
    top = round((budget - 1) * share)
    for index in range(3):
        assert set(by_attention(alone(image, index), top)) <= set(origin[index].tolist())


def test_even_grid_is_exact_and_reaches_the_last_patch() -> None:
    image = make_tokens()
    _, valid, origin = build_reducer({"name": "prumerge_plus", "grid": "even"})(image)
    for index in range(3):
        count = outliers(class_attention(alone(image, index)))
        assert int(valid[index].sum()) == 4 * count + 1
        last = max(j for j in range(144) if j not in by_attention(alone(image, index), count))
        assert last in origin[index].tolist()


def test_per_head_scores_differ_and_factor_counts() -> None:
    image = make_tokens(logits=peaked_logits(3, 144, high=0.1))
    whole, heads = image.attention(), image.attention(per_head=True)
    assert not torch.allclose(whole, heads)
    strict = build_reducer({"name": "prumerge", "iqr_factor": 6.0})(image)[1].sum()
    loose = build_reducer({"name": "prumerge", "iqr_factor": 0.5})(image)[1].sum()
    assert strict < loose


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"budget": 40, "ratio": 0.5}, "not both"),
        ({"merge": "mean"}, "sum, neighbours, average"),
        ({"order": "x"}, "attention, raster"),
        ({"neighbours": -1}, "at least 0"),
        ({"ratio": "a/b"}, "fraction such as 1/8"),
        ({"ratio": 2}, r"\(0, 1\]"),
        ({"ratio": "1/0"}, "1/8"),
        ({"budget": 0}, "positive"),
        ({"budget": True}, "positive"),
        ({"positions": "x"}, "contiguous, original"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ReductionError, match=word):
        build_reducer({"name": "prumerge", **settings})
