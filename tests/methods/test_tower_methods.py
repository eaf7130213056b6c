"""ToMe, VisionZip, FasterVLM and DivPrune against slow references written from the papers' rules, field by field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from vision_tokens import make_tokens

from llava_prumerge.methods.base import Reduced, ReductionError, VisionTokens
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.matching import merge_schedule


def two_blocks(images: int = 2, grid: tuple[int, int] = (6, 7), seed: int = 0) -> VisionTokens:
    """Tokens whose own block and next block attend to different patches."""
    image, other = make_tokens(images, grid, seed=seed), make_tokens(images, grid, seed=seed + 100)
    following, mine = image.projections(), other.projections()
    image.projections = lambda own=False: mine if own else following
    return image


def reduce(image: VisionTokens, name: str, **settings: Any) -> Reduced:
    return build_reducer({"name": name, **settings})(image)


def class_attention(image: VisionTokens, own: bool) -> np.ndarray:
    """Mean over heads of the class row's softmax, one image and one head at a time. [N, P]"""
    queries, keys = (part.double().numpy() for part in image.projections(own=own))
    rows = []
    for query, key in zip(queries[:, 0], keys):
        total = 0.0
        for head in range(image.heads):
            part = slice(head * key.shape[1] // image.heads, (head + 1) * key.shape[1] // image.heads)
            logits = np.array([query[part] @ one[part] for one in key]) / len(query[part]) ** 0.5
            total = total + np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        rows.append(total[1:] / image.heads)
    return np.array(rows)


def head_keys(image: VisionTokens, own: bool) -> np.ndarray:
    """[N, P, C/H]"""
    keys = image.projections(own=own)[1][:, 1:].double().numpy()
    return np.mean(np.split(keys, image.heads, axis=2), axis=0)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("block", ["own", "next"])
def test_fastervlm_takes_the_most_attended(block: str) -> None:
    image = two_blocks()
    features, valid, origin = reduce(image, "fastervlm", budget=9, block=block)
    for index, row in enumerate(class_attention(image, block == "own")):
        assert origin[index].tolist() == sorted(np.argsort(-row)[:9].tolist())
    assert valid.all() and torch.equal(features, image.features.gather(1, origin[..., None].expand_as(features)))


def test_fastervlm_of_the_next_block_is_cls_topk_per_head_in_raster_order() -> None:
    image = two_blocks()
    same = reduce(image, "cls_topk", budget=9, per_head=True, order="raster")[2]
    assert torch.equal(reduce(image, "fastervlm", budget=9, block="next")[2], same)
    assert not torch.equal(reduce(image, "fastervlm", budget=9)[2], same)


def visionzip(
    image: VisionTokens, size: int, dominant: int, merge: str, own: bool, class_token: bool
) -> tuple[np.ndarray, list[list[int]]]:
    """Features and origins, token by token."""
    everything, origins = [], []
    class_token = class_token and dominant > 1
    tokens_of_class = image.class_token.double().numpy()
    for x, first, row, keys in zip(
        image.features.double().numpy(), tokens_of_class, class_attention(image, own), head_keys(image, own)
    ):
        top = sorted(np.argsort(-row)[: dominant - class_token].tolist())
        rest = [patch for patch in range(len(row)) if patch not in top]
        step = len(rest) // (size - dominant)
        targets = [rest[number * step] for number in range(size - dominant)]
        groups: dict[int, list[int]] = {target: [] for target in targets}
        for patch in rest:
            if patch not in groups:
                groups[max(targets, key=lambda target: cosine(keys[patch], keys[target]))].append(patch)
        tokens = [*(first if class_token else []), *(x[patch] for patch in top)]
        for target, group in groups.items():
            if merge == "add":
                tokens.append(x[target] + (x[group].mean(axis=0) if group else 0))
            else:
                tokens.append(x[[target, *group]].mean(axis=0) if merge == "mean" else x[target])
        everything.append(tokens)
        origins.append([-1] * class_token + top + targets)
    return np.array(everything), origins


@pytest.mark.parametrize("merge", ["add", "mean", "none"])
@pytest.mark.parametrize("block", ["own", "next"])
@pytest.mark.parametrize("share, dominant", [("27/32", 10), (0.5, 6), (0.01, 0)])
@pytest.mark.parametrize("class_token", [True, False])
def test_visionzip_equals_its_rule(
    merge: str, block: str, share: float | str, dominant: int, class_token: bool
) -> None:
    image = two_blocks()
    settings = {"share": share, "merge": merge, "block": block, "class_token": class_token}
    features, valid, origin = reduce(image, "visionzip", budget=12, **settings)
    expected, origins = visionzip(image, 12, dominant, merge, block == "own", class_token)
    assert valid.all() and origin.tolist() == origins
    torch.testing.assert_close(features.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens, dominant", [(64, 54), (128, 108), (192, 162)])
def test_visionzips_share_gives_the_papers_numbers(tokens: int, dominant: int) -> None:
    image = make_tokens(images=1, grid=(24, 24))
    features, _, origin = reduce(image, "visionzip", budget=tokens)
    assert torch.equal(features[:, :1], image.class_token) and origin[0, 0] == -1
    features, origin = features[:, 1:], origin[:, 1:]
    unchanged = (features == image.features.gather(1, origin[..., None].expand_as(features))).all(dim=2)
    assert int(unchanged.sum()) == dominant - 1 and unchanged[0, : dominant - 1].all()


def tome(x: np.ndarray, keys: np.ndarray, merges: list[int], protected: bool) -> tuple[np.ndarray, list[int]]:
    """One image: every token a list of patches, headed by the one that the others were merged into.

    With a protected class token `keys` begins with its own; it is patch -1, and is left out in the end.
    """
    tokens = [[patch] for patch in range(-protected, len(x))]
    for count in merges:
        mean = [keys[np.array(token) + protected].mean(axis=0) for token in tokens]
        links = []
        for a in range(2 * protected, len(tokens), 2):
            partner = max(range(1, len(tokens), 2), key=lambda b: cosine(mean[a], mean[b]))
            links.append((cosine(mean[a], mean[partner]), a, partner))
        links.sort(reverse=True)
        for _, a, partner in links[:count]:
            tokens[partner] = tokens[partner] + tokens[a]
        rest = [a for _, a, _ in links[count:]]
        left = [0, *sorted(rest)] if protected else rest
        tokens = [tokens[a] for a in left] + tokens[1::2]
    tokens = tokens[protected:]
    return np.array([x[token].mean(axis=0) for token in tokens]), [token[0] for token in tokens]


@pytest.mark.parametrize("rounds, merges", [(1, [20, 10]), (3, [10, 10, 10]), (5, [6] * 5)])
@pytest.mark.parametrize("block", ["own", "next"])
@pytest.mark.parametrize("class_token", [True, False])
def test_tome_equals_its_rule(rounds: int, merges: list[int], block: str, class_token: bool) -> None:
    image = two_blocks(grid=(5, 8))
    settings = {"budget": 10, "rounds": rounds, "block": block, "class_token": class_token}
    features, valid, origin = reduce(image, "tome", **settings)
    assert valid.all() and merge_schedule(40, 10, rounds) == merges
    ordered = reduce(image, "tome", **settings, order="raster")
    assert ordered[2].tolist() == origin.sort(dim=1).values.tolist()
    all_keys = image.block(block == "own").mean_keys.double().numpy()
    for index in range(len(features)):
        keys = all_keys[index] if class_token else all_keys[index, 1:]
        expected, heads = tome(image.features[index].double().numpy(), keys, merges, class_token)
        assert origin[index].tolist() == heads
        torch.testing.assert_close(features[index].double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_tome_merges_what_is_equal_first() -> None:
    image = two_blocks(images=1, grid=(1, 8))
    keys = torch.eye(16)[None, :8].clone()
    keys[0, 2], keys[0, 4] = keys[0, 7], 3 * keys[0, 1]  # 2 is like 7, 4 points as 1 does
    image.projections = lambda own=False: (torch.zeros(1, 1, 16), torch.nn.functional.pad(keys, (0, 0, 1, 0)))
    image.heads = 1
    features, _, origin = reduce(image, "tome", budget=6, rounds=1, class_token=False, order="raster")
    assert origin[0].tolist() == [0, 1, 3, 5, 6, 7]
    x = image.features[0]
    expected = torch.stack([x[0], (x[1] + x[4]) / 2, x[3], x[5], x[6], (x[2] + x[7]) / 2])
    torch.testing.assert_close(features[0], expected)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 144, 576])
@pytest.mark.parametrize("target", [1, 2, 5, 64, 575, 576])
@pytest.mark.parametrize("rounds", [1, 8, 23])
def test_schedules_end_at_the_target(tokens: int, target: int, rounds: int) -> None:
    merges, left = merge_schedule(tokens, target, rounds), tokens
    for count in merges:
        assert 1 <= count <= left // 2
        left -= count
    assert left == min(tokens, target)
    assert len(merges) <= max(rounds, 1) + max(tokens // target, 1).bit_length()


def divprune(x: np.ndarray, size: int) -> list[int]:
    """Every candidate against every kept token, in each step."""
    distance = [[1 - cosine(one, other) for other in x] for one in x]
    everyone = range(len(x))
    kept = [max(everyone, key=lambda i: min(distance[i][j] for j in everyone if j != i))]
    while len(kept) < size:
        left = [i for i in everyone if i not in kept]
        kept.append(max(left, key=lambda i: min(distance[i][j] for j in kept)))
    return sorted(kept)


@pytest.mark.parametrize("size", [1, 2, 9, 41])
def test_divprune_equals_its_rule(size: int) -> None:
    image = make_tokens(images=3, grid=(6, 7), width=4, seed=5)
    features, valid, origin = reduce(image, "divprune", budget=size)
    assert valid.all() and origin.tolist() == [divprune(x, size) for x in image.features.double().numpy()]
    assert torch.equal(features, image.features.gather(1, origin[..., None].expand_as(features)))


def test_divprune_spreads_over_directions() -> None:
    """Three directions, many copies of each at all lengths: three tokens are one of each."""
    image = make_tokens(images=1, grid=(3, 8))
    image.features = torch.eye(16)[torch.arange(24) % 3][None] * torch.rand(1, 24, 1).add(0.1)
    origin = reduce(image, "divprune", budget=3)[2][0]
    assert sorted((origin % 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("name, released", [("tome", 64), ("visionzip", 64), ("fastervlm", 144), ("divprune", 56)])
def test_share_of_the_patches(name: str, released: int) -> None:
    image = make_tokens(images=2, grid=(24, 24))
    assert reduce(image, name)[1].shape == (2, released)
    for keep, kept in (("1/4", 144), (0.1, 58), (1, 576), ("1/1000", 1)):
        assert reduce(image, name, keep=keep)[1].sum(dim=1).tolist() == [kept] * 2
    assert reduce(image, name, keep_ratio=0.1, budget=7)[1].shape == (2, 7)


@pytest.mark.parametrize("name", ["tome", "visionzip", "fastervlm", "divprune"])
def test_with_all_kept_nothing_changes(name: str) -> None:
    image = make_tokens(images=2)
    features, _, origin = reduce(image, name, budget=144)
    assert torch.equal(features, image.features) and origin.tolist() == [list(range(144))] * 2


@pytest.mark.parametrize(
    "name, settings, word",
    [
        ("tome", {"keep_ratio": 0}, "keep_ratio 0 is not a number in"),
        ("tome", {"keep_ratio": "1/0"}, "keep_ratio '1/0' is not a number in"),
        ("divprune", {"keep_ratio": True}, "keep_ratio True is not a number in"),
        ("fastervlm", {"keep_ratio": float("nan")}, "keep_ratio nan is not a number in"),
        ("tome", {"rounds": 0}, "rounds 0 is not a positive whole number"),
        ("tome", {"block": "last"}, "block 'last' is not one of own, next"),
        ("visionzip", {"share": 1.5}, "share 1.5 is not a number in"),
        ("visionzip", {"merge": "sum"}, "merge 'sum' is not one of add, mean, none"),
        ("visionzip", {"block": 1}, "block 1 is not one of own, next"),
        ("fastervlm", {"block": None}, "block None is not one of own, next"),
        ("divprune", {"budget": 2.0}, "budget 2.0 is not a positive whole number"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ReductionError, match=f"{name}: {word}"):
        build_reducer({"name": name, **settings})


def test_broken_keys_are_an_error() -> None:
    image = make_tokens()
    image.projections()[1][1, 2, 3] = float("nan")
    for name in ("tome", "visionzip", "fastervlm"):
        with pytest.raises(ReductionError, match=f"{name}: .*NaN"):
            reduce(image, name)


@pytest.mark.parametrize("name", ["tome", "visionzip", "divprune"])
def test_gradients_reach_what_is_kept(name: str) -> None:
    image = make_tokens(images=1)
    image.features.requires_grad_()
    features = reduce(image, name, budget=20)[0]
    features.square().sum().backward()
    reached = int((image.features.grad.abs().sum(dim=2) > 0).sum())
    assert reached == (20 if name == "divprune" else 144)
