"""TRSM and PAR against slow references written from the rules they state, and what each field does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from vision_tokens import alone, make_tokens

from llava_prumerge.methods.base import Reduced, ReductionError, VisionTokens
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.clusters import best_of_cluster, connected_labels, membership, similarity_graph
from llava_prumerge.ops.retrieval import centred, contrast_weights, queries_of

BOTH = pytest.mark.parametrize("name", ["trsm", "par"])


def asked(
    images: int = 3, grid: tuple[int, int] = (6, 7), words: int = 6, width: int = 8, seed: int = 0
) -> VisionTokens:
    """Patches in loose bunches, and a prompt of another length for each image, padded on the left."""
    image = make_tokens(images, grid, width=width, seed=seed)
    generator = torch.Generator().manual_seed(seed + 50)
    bunch = torch.randint(0, 9, (images, grid[0] * grid[1]), generator=generator)
    middles = torch.randn(images, 9, width, generator=generator)
    image.features = middles.gather(1, bunch[..., None].expand(-1, -1, width)) + 0.35 * image.features + 1.5
    text = torch.randn(images, words, width, generator=generator) - 0.7
    mask = torch.arange(words) >= torch.arange(images)[:, None]
    image.prompt = lambda: (text, mask)
    return image


def reduce(image: VisionTokens, name: str, **settings: Any) -> Reduced:
    return build_reducer({"name": name, **settings})(image)


def with_prompt(image: VisionTokens, text: torch.Tensor, mask: torch.Tensor) -> VisionTokens:
    return VisionTokens(image.features, image.grid, prompt=lambda: (text, mask))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def sides(image: VisionTokens, index: int, centre: str) -> tuple[np.ndarray, np.ndarray]:
    """Patches and real prompt tokens of one image, means subtracted."""
    x = image.features[index].double().numpy()
    t = image.text[index][image.text_mask[index]].double().numpy()
    if centre == "none":
        return x, t
    return x - x.mean(axis=0), t - (t if centre == "both" else x).mean(axis=0)


def trsm(x: np.ndarray, t: np.ndarray, size: int, depth: int | None = None) -> list[int]:
    """Lists that grow one patch at a time; `depth` ends them early."""
    similarity = [[cosine(word, patch) for patch in x] for word in t]
    lists = [sorted(range(len(x)), key=lambda patch: -row[patch]) for row in similarity]
    kept: list[int] = []
    for length in range(len(x) if depth is None else depth):
        joining = {ranked[length] for ranked in lists} - set(kept)
        kept += sorted(joining, key=lambda patch: -max(row[patch] for row in similarity))
    return sorted(kept[:size])


def averaged(
    x: np.ndarray, v: np.ndarray, kept: list[int], given: list[int], labels: list[int] | None = None
) -> np.ndarray:
    """Means of each kept token and what is nearest to it."""
    groups = {patch: [patch] for patch in kept}
    for patch in given:
        near = [one for one in kept if labels is None or labels[one] == labels[patch]]
        groups[max(near, key=lambda one: cosine(v[one], v[patch]))].append(patch)
    return np.array([x[group].mean(axis=0) for group in groups.values()])


@pytest.mark.parametrize("centre", ["both", "visual", "none"])
@pytest.mark.parametrize("merge", ["mean", "none"])
@pytest.mark.parametrize("size", [1, 8, 29])
def test_trsm_equals_its_rule(centre: str, merge: str, size: int) -> None:
    image = asked()
    features, valid, origin = reduce(image, "trsm", budget=size, centre=centre, merge=merge)
    assert valid.all()
    for index in range(3):
        x, (v, t) = image.features[index].double().numpy(), sides(image, index, centre)
        kept = trsm(v, t, size)
        assert origin[index].tolist() == kept
        rest = [patch for patch in range(42) if patch not in kept]
        expected = averaged(x, v, kept, rest if merge == "mean" else [])
        torch.testing.assert_close(features[index].double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_trsm_keeps_no_more_than_was_retrieved(depth: int) -> None:
    image = asked()
    features, valid, origin = reduce(image, "trsm", keep_ratio=0.5, retrieve=depth)
    expected = [trsm(*sides(image, index, "both"), 21, depth) for index in range(3)]
    assert [row[row >= 0].tolist() for row in origin] == expected
    counts = [len(kept) for kept in expected]
    assert len(set(counts)) > 1 and max(counts) <= min(21, 6 * depth)
    for index, kept in enumerate(expected):
        v, _ = sides(image, index, "both")
        rest = [patch for patch in range(42) if patch not in kept]
        means = averaged(image.features[index].double().numpy(), v, kept, rest)
        torch.testing.assert_close(features[index, : len(kept)].double(), torch.from_numpy(means), atol=1e-5, rtol=1e-5)
    assert reduce(image, "trsm", budget=30, retrieve=1)[1].sum(dim=1).tolist() == [30] * 3


def test_trsm_finds_what_the_prompt_is_like() -> None:
    """Patches lie along axes; the words lie along those of patches 11 and 2, whatever common part each side has."""
    axes = torch.eye(12)[None]
    text = axes[:, [11, 2, 2]]
    for shift in (0.0, 5.0):
        image = VisionTokens(axes + shift, (3, 4), prompt=lambda shift=shift: (text - shift, torch.ones(1, 3) > 0))
        assert reduce(image, "trsm", budget=2)[2].tolist() == [[2, 11]]


@BOTH
def test_the_prompt_decides(name: str) -> None:
    image = asked()
    text, mask = image.prompt()
    first = reduce(image, name, budget=8)[2]
    other = reduce(with_prompt(image, text.flip(2), mask), name, budget=8)[2]
    assert all(set(one.tolist()) != set(two.tolist()) for one, two in zip(first, other))


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_the_prompt_changes_nothing(name: str, side: str) -> None:
    image = asked()
    text, mask = image.prompt()
    junk = 100 * torch.ones(3, 4, 8)
    order = (lambda *parts: parts) if side == "left" else (lambda *parts: parts[::-1])
    padded = torch.cat(order(junk, text), dim=1), torch.cat(order(torch.zeros(3, 4, dtype=torch.bool), mask), dim=1)
    plain = reduce(image, name, budget=8, before=1, after=1)
    for one, two in zip(plain, reduce(with_prompt(image, *padded), name, budget=8, before=1, after=1)):
        torch.testing.assert_close(one, two)
    index = 2  # the one with padding of its own
    cut = VisionTokens(image.features[2:], image.grid, prompt=lambda: (text[2:, 2:], mask[2:, 2:]))
    assert reduce(cut, name, budget=8, before=1, after=1)[2][0].tolist() == plain[2][index].tolist()


@BOTH
def test_the_templates_tokens_do_not_ask(name: str) -> None:
    image = asked(images=1)
    text, mask = image.prompt()
    text, given = text + 2.2, dict(budget=8, centre="visual")  # a mean that does not depend on the prompt
    image = with_prompt(image, text, mask)
    inner = reduce(with_prompt(image, text[:, 2:5], mask[:, 2:5]), name, **given)[2]
    assert torch.equal(reduce(image, name, before=2, after=1, **given)[2], inner)
    assert not torch.equal(reduce(image, name, **given)[2], inner)
    whole = reduce(image, name, **given)[2]
    assert torch.equal(reduce(image, name, before=3, after=3, **given)[2], whole), (
        "nothing but template asks as a whole"
    )


def test_queries_count_real_tokens_only() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    expected = [[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert queries_of(mask, 1, 1).long().tolist() == expected
    assert torch.equal(queries_of(mask, 2, 2), mask)


@BOTH
def test_a_prompt_without_tokens(name: str) -> None:
    image = asked()
    text, mask = image.prompt()
    empty = with_prompt(image, text, mask & (torch.arange(3) != 1)[:, None])
    features, valid, origin = reduce(empty, name, budget=8)
    assert features.isfinite().all() and valid.all()
    plain = reduce(image, name, budget=8)[2]
    assert torch.equal(origin[0], plain[0]) and torch.equal(origin[2], plain[2])
    with pytest.raises(ReductionError, match="empty"):
        reduce(with_prompt(image, text[:, :0], mask[:, :0]), name, budget=8)
    with pytest.raises(ReductionError, match="prompt"):
        reduce(VisionTokens(image.features, image.grid), name, budget=8)


@BOTH
def test_broken_prompts_are_an_error(name: str) -> None:
    image = asked()
    image.prompt()[0][1, 3, 2] = float("nan")
    with pytest.raises(ReductionError, match=f"{name}: .*NaN"):
        reduce(image, name)


@BOTH
def test_clip_space_where_there_is_one(name: str) -> None:
    image = asked()
    with pytest.raises(ReductionError, match="space 'clip' needs a tower with its text side.*take space llm"):
        reduce(image, name, space="clip", budget=8)
    other = asked(width=5, seed=7)
    image.clip = lambda: (other.features, *other.prompt())
    features, _, origin = reduce(image, name, space="clip", budget=8, merge="none")
    assert torch.equal(origin, reduce(other, name, budget=8)[2])
    assert not torch.equal(origin, reduce(image, name, budget=8)[2])
    assert torch.equal(features, image.features.gather(1, origin[..., None].expand_as(features)))


@BOTH
def test_batch_equals_single_with_ragged_prompts(name: str) -> None:
    image = asked(images=4)
    image.projections = lambda own=False: (image.features, image.features)
    features, _, origin = reduce(image, name, budget=8)
    for index in range(4):
        one = reduce(alone(image, index), name, budget=8)
        assert one[2][0].tolist() == origin[index].tolist()
        torch.testing.assert_close(one[0][0], features[index], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name, kept", [("trsm", 116), ("par", 64)])
def test_default_shares_of_576(name: str, kept: int) -> None:
    image = make_tokens(images=2, grid=(24, 24))
    assert reduce(image, name)[1].sum(dim=1).tolist() == [kept] * 2
    assert reduce(image, name, keep_ratio=0.8)[1].sum(dim=1).tolist() == [461] * 2
    assert reduce(image, name, keep_ratio=0.8, budget=40)[1].sum(dim=1).tolist() == [40] * 2


def union_find(graph: np.ndarray) -> list[int]:
    """The lowest member of each point's connected part."""
    label = list(range(len(graph)))
    changed = True
    while changed:
        changed = False
        for one in range(len(graph)):
            for other in range(len(graph)):
                if graph[one, other] and label[one] != label[other]:
                    label[one] = label[other] = min(label[one], label[other])
                    changed = True
    return label


def symmetric(joined: torch.Tensor) -> torch.Tensor:
    return joined | joined.transpose(1, 2) | torch.eye(joined.shape[1], dtype=torch.bool)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.03, 0.05, 1.0])
def test_clusters_are_the_connected_parts(density: float) -> None:
    graph = symmetric(torch.rand(4, 60, 60, generator=torch.Generator().manual_seed(0)) < density)
    labels = connected_labels(graph, 10)
    assert labels.tolist() == [union_find(one) for one in graph.numpy()]
    assert torch.equal(membership(labels).sum(dim=(1, 2)), torch.full((4,), 60.0))


def chain(order: torch.Tensor) -> torch.Tensor:
    graph = torch.zeros(1, len(order), len(order), dtype=torch.bool)
    graph[0, order[:-1], order[1:]] = True
    return symmetric(graph)


def test_ten_rounds_serve_the_longest_chains() -> None:
    generator = torch.Generator().manual_seed(0)
    halves = torch.stack([torch.arange(288), 575 - torch.arange(288)], dim=1).flatten()
    orders = [torch.arange(576), torch.arange(576).flip(0), halves, halves.flip(0)]
    orders += [torch.randperm(576, generator=generator) for _ in range(20)]
    for order in orders:
        assert not connected_labels(chain(order), 10).any()
    assert len(set(connected_labels(chain(orders[-1]), 1)[0].tolist())) > 1


def test_too_few_rounds_split_but_never_join() -> None:
    graph = symmetric(torch.rand(4, 60, 60, generator=torch.Generator().manual_seed(1)) < 0.03)
    whole = connected_labels(graph, 10)
    for rounds in (1, 2):
        labels = connected_labels(graph, rounds)
        for number in range(60):
            assert all(len(set(whole[n][labels[n] == number].tolist())) <= 1 for n in range(4))


def test_the_graph_joins_from_the_threshold_on() -> None:
    points = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])  # cosines 0, 0.6 and 0.8
    joined = lambda threshold: similarity_graph(points, threshold)[0].long().tolist()  # noqa: E731
    assert joined(0.59) == [[1, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert joined(0.7) == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert joined(0.9) == torch.eye(3).long().tolist()


def test_the_best_of_each_cluster_is_one() -> None:
    labels = torch.tensor([[0, 0, 2, 2, 2, 5]])
    assert best_of_cluster(labels, torch.tensor([[3, 1, 5, 0, 2, 4]])).tolist() == [
        [False, True, False, True, False, True]
    ]


def test_contrast_turns_down_words_that_fit_everywhere() -> None:
    similarity = torch.tensor([[[0.5, 0.5, 0.5], [0.9, -0.3, 0.0], [0.4, 0.2, 0.0], [0.9, 0.0, 0.0]]])
    weights = contrast_weights(similarity, torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0, 0.2 / 0.7, 0.0]]))


def par(
    v: np.ndarray, t: np.ndarray, size: int, threshold: float, retrieve: float, weights: str
) -> dict[str, list[int]]:
    """Clusters, retrieval and router, cluster by cluster and token by token."""
    patches = range(len(v))
    labels = union_find(np.array([[cosine(one, other) >= threshold for other in v] for one in v]))
    similarity = np.array([[cosine(word, patch) for patch in v] for word in t])
    weight = similarity.max(axis=1) - similarity.mean(axis=1)
    weight = weight / weight.max() if weights == "contrast" else np.ones(len(t))
    match = lambda column: max(w * (1 + s) / 2 for w, s in zip(weight, column))  # noqa: E731
    clusters = {label: [patch for patch in patches if labels[patch] == label] for label in labels}
    ordered = sorted(clusters, key=lambda label: -match(similarity[:, clusters[label]].mean(axis=1)))
    taken: list[int] = []
    for label in ordered:
        if sum(len(clusters[one]) for one in taken) < max(size, math.ceil(retrieve * len(v))) and len(taken) < size:
            taken.append(label)
    score = [match(similarity[:, patch]) for patch in patches]
    kept = [max(clusters[label], key=lambda patch: score[patch]) for label in taken]
    retrieved = sorted(patch for label in taken for patch in clusters[label])
    others = sorted((patch for patch in retrieved if patch not in kept), key=lambda patch: -score[patch])
    kept = sorted(kept + others[: size - len(kept)])
    return {"labels": labels, "kept": kept, "given": [patch for patch in retrieved if patch not in kept]}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.99])
@pytest.mark.parametrize("retrieve", [0.1, 0.5, 1])
@pytest.mark.parametrize("size, weights", [(4, "contrast"), (13, "even"), (30, "contrast")])
def test_par_equals_its_rule(threshold: float, retrieve: float, size: int, weights: str) -> None:
    image = asked()
    given = dict(budget=size, threshold=threshold, retrieve=retrieve, weights=weights)
    features, valid, origin = reduce(image, "par", **given)
    bare = reduce(image, "par", merge="none", **given)
    assert valid.all() and torch.equal(bare[2], origin)
    for index in range(3):
        v, t = sides(image, index, "both")
        expected = par(v, t, size, threshold, retrieve, weights)
        x, kept = image.features[index], expected["kept"]
        assert origin[index].tolist() == kept and torch.equal(bare[0][index], x[kept])
        means = averaged(x.double().numpy(), v, kept, expected["given"], expected["labels"])
        torch.testing.assert_close(features[index].double(), torch.from_numpy(means), atol=1e-5, rtol=1e-5)


def test_the_cases_of_par_are_of_every_kind() -> None:
    """The comparison above is about something: clusters of several, clusters dropped, tokens merged."""
    image = asked()
    cases = [par(*sides(image, index, "both"), 13, 0.8, 0.5, "even") for index in range(3)]
    for case in cases:
        sizes = [case["labels"].count(label) for label in set(case["labels"])]
        assert max(sizes) > 2 and len(sizes) > 5
        assert case["given"] and len(case["given"]) + len(case["kept"]) < 42


def test_each_field_of_par_matters() -> None:
    image = asked()
    plain = dict(budget=10, threshold=0.8)
    reference = reduce(image, "par", **plain)
    for change in (
        {"threshold": 0.4},
        {"retrieve": 0.25},
        {"weights": "even"},
        {"centre": "none"},
        {"before": 2},
        {"after": 3},
        {"merge": "none"},
        {"rounds": 1},
    ):
        changed = reduce(image, "par", **plain | change)
        assert changed[1].sum(dim=1).tolist() == [10] * 3
        if change != {"rounds": 1}:  # bunches this small are found at once
            assert not torch.equal(changed[0], reference[0]), change


def test_means_are_over_one_image_and_the_real_words() -> None:
    visual, text = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    one, two = centred(visual, text, mask, "both")
    torch.testing.assert_close(one[1], visual[1] - visual[1].mean(dim=0))
    torch.testing.assert_close(two[0, :2], text[0, :2] - text[0, :2].mean(dim=0))
    assert not two[0, 2:].any()
    torch.testing.assert_close(centred(visual, text, mask, "visual")[1][1, 1:], text[1, 1:] - visual[1].mean(dim=0))
    assert torch.equal(centred(visual, text, mask, "none")[0], visual)


@pytest.mark.parametrize(
    "name, settings, word",
    [
        ("trsm", {"retrieve": 0}, "retrieve 0 is not a positive whole number"),
        ("trsm", {"space": "t5"}, "space 't5' is not one of llm, clip"),
        ("trsm", {"centre": True}, "centre True is not one of both, visual, none"),
        ("trsm", {"before": -1}, "before -1 is not a whole number of at least 0"),
        ("trsm", {"after": 1.5}, "after 1.5 is not a whole number of at least 0"),
        ("trsm", {"merge": "sum"}, "merge 'sum' is not one of mean, none"),
        ("trsm", {"keep_ratio": 20}, "keep_ratio 20 is not a number in"),
        ("par", {"threshold": 0}, "threshold 0 is not a number in"),
        ("par", {"retrieve": "all"}, "retrieve 'all' is not a number in"),
        ("par", {"weights": None}, "weights None is not one of contrast, even"),
        ("par", {"rounds": 0}, "rounds 0 is not a positive whole number"),
        ("par", {"space": 1}, "space 1 is not one of llm, clip"),
        ("par", {"centre": "x"}, "centre 'x' is not one of both, visual, none"),
        ("par", {"before": True}, "before True is not a whole number of at least 0"),
        ("par", {"after": "2"}, "after '2' is not a whole number of at least 0"),
        ("par", {"merge": 0}, "merge 0 is not one of mean, none"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ReductionError, match=f"{name}: {word}"):
        build_reducer({"name": name, **settings})
