"""What the golden arrays do not show of vision methods: other sizes, tiles, earlier blocks, the prompt."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from vision_tokens import alone, make_tokens

from llava_prumerge.methods.base import Earlier, Reduced, ReductionError, VisionTokens
from llava_prumerge.methods.registry import build_reducer


def reduce(image: VisionTokens, name: str, **settings: Any) -> Reduced:
    return build_reducer({"name": name, **settings})(image)


def two_depths(grid: tuple[int, int] = (24, 24), images: int = 2) -> VisionTokens:
    """Tokens whose earlier block attends to other patches than the one that made them."""
    image, other = make_tokens(images, grid, seed=1), make_tokens(images, grid, seed=2)
    late, early = image.projections(), other.projections()
    image.projections = lambda own=False: early if isinstance(own, Earlier) else late
    return image


@pytest.mark.parametrize("size, kept", [(96, 96), (100, 98), (64, 64), (33, 17)])
def test_vscan_keeps_as_many_as_released(size: int, kept: int) -> None:
    image = two_depths()
    left = kept if size != 33 else 33 - 16 + 16  # half of 33 is 16, one for each window
    assert reduce(image, "vscan", budget=size, count="released")[1].sum(dim=1).tolist() == [left] * 2
    assert reduce(image, "vscan", budget=size)[1].sum(dim=1).tolist() == [size] * 2


def test_vscans_windows_choose_by_the_earlier_block() -> None:
    image = two_depths()
    origin = reduce(image, "vscan", budget=64, merge="none")[2]
    early = image.attention(per_head=True, own=Earlier(Fraction(5, 22))).view(2, 24, 24)
    late = image.attention(per_head=True, own=True)
    for index in range(2):
        local = set()
        for row in range(0, 24, 6):
            for column in range(0, 24, 6):
                window = early[index, row : row + 6, column : column + 6]
                for best in window.flatten().argsort(descending=True)[:2].tolist():
                    local.add((row + best // 6) * 24 + column + best % 6)
        rest = [patch for patch in late[index].argsort(descending=True).tolist() if patch not in local]
        assert set(origin[index].tolist()) == local | set(rest[:32])


@pytest.mark.parametrize("budget, share", [(144, 0.9), (100, 0.33), (8, 0.5), (5, 0.0), (5, 1.0)])
def test_vispruner_works_where_the_release_raises(budget: int, share: float) -> None:
    image = make_tokens(2, (24, 24))
    origin = reduce(image, "vispruner", budget=budget, important_ratio=share)[2]
    most = image.attention(per_head=True, own=True).argsort(dim=1, descending=True)[:, : int(budget * share)]
    assert all(set(top.tolist()) <= set(row.tolist()) for top, row in zip(most, origin, strict=True))


def test_holovs_quotas_are_those_of_attention_alone() -> None:
    """The term for diversity cancels out."""
    image = make_tokens(3, (24, 24))
    kept = [reduce(image, "holov", diversity=weight)[2].tolist() for weight in (0.0, 0.09, 50.0)]
    assert kept[0] == kept[1] == kept[2]


def test_a_crop_that_is_full_leaves_places_empty_as_released() -> None:
    image = make_tokens(2, (12, 12), logits=9.0 * (torch.arange(144) < 9).float().expand(2, -1))
    released, exact = (reduce(image, "holov", budget=36, count=count) for count in ("released", "exact"))
    assert released[1].sum(dim=1).tolist() != [36, 36] and exact[1].sum(dim=1).tolist() == [36, 36]
    assert all(set(range(9)) <= set(row.tolist()) for row in exact[2])


def tiles(counts: list[int], last: bool = False) -> VisionTokens:
    """Images of so many tiles each, the whole first or last."""
    image = two_depths((6, 6), sum(counts))
    ends = torch.tensor(counts).cumsum(0)
    shows = ends - 1 if last else ends - torch.tensor(counts)
    image.overview = shows.repeat_interleave(torch.tensor(counts))
    return image


@pytest.mark.parametrize("last", [False, True])
def test_hired_shares_among_tiles(last: bool) -> None:
    image = tiles([5, 1, 3], last)
    reducer = build_reducer({"name": "hired", "keep_ratio": "1/3"})
    counts = reducer(image)[1].sum(dim=1).tolist()
    first = image.attention(per_head=True, own=Earlier(Fraction(0)))
    begin = 0
    for number in (5, 1, 3):
        view = begin + (number - 1 if last else 0)
        total = number * 36 // 3
        if number == 1:
            assert counts[view] == total
        else:
            marks = first[view].argsort(descending=True)[:18].tolist()
            pieces = [sum(patch * (number - 1) // 36 == piece for patch in marks) for piece in range(number - 1)]
            expected = [max(1, piece * (total - total // 2) // 18) for piece in pieces]
            others = [at for at in range(begin, begin + number) if at != view]
            assert counts[view] == total // 2 and [counts[at] for at in others] == expected
        begin += number


def test_hired_can_count_in_the_parts_that_tiles_show() -> None:
    """Four quarters of the view: all its marks lie in the last one, so that tile gets all that is shared out."""
    image = tiles([5])
    half = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.5, 0.0], [0.5, 0.5]])
    image.boxes = torch.cat([torch.tensor([[0.0, 0, 1, 1]]), torch.cat([half, half + 0.5], dim=1)])
    logits = 9.0 * ((torch.arange(36) // 6 >= 3) & (torch.arange(36) % 6 >= 3)).float()
    early = make_tokens(5, (6, 6), logits=logits.expand(5, -1)).projections()
    late = image.projections(own=True)
    image.projections = lambda own=False: early if isinstance(own, Earlier) else late
    settings = {"keep_ratio": "1/4", "alpha": "3/4"}  # nine marks, eleven tokens beside the view's 33
    parts = reduce(image, "hired", pieces="parts", **settings)[1].sum(dim=1).tolist()
    bands = reduce(image, "hired", **settings)[1].sum(dim=1).tolist()
    assert parts == [33, 1, 1, 1, 12] and bands[0] == 33 and bands[3] > 1


def test_a_budget_of_tiles_is_met_by_the_image() -> None:
    image = tiles([5, 1, 3])
    counts = reduce(image, "hired", budget=7)[1].sum(dim=1).tolist()
    assert [sum(counts[:5]), counts[5], sum(counts[6:])] == [35, 7, 21]


@pytest.mark.parametrize("name", ["mmtok", "cdpruner", "trimtokenator", "trim", "demand_coverage"])
def test_the_question_decides(name: str) -> None:
    image = make_tokens(2, (12, 12))
    text, mask = image.prompt()
    first = reduce(image, name, budget=12)[2]
    image.prompt = lambda: (text.flip(2), mask)
    del image._prompted
    assert not torch.equal(first, reduce(image, name, budget=12)[2])


@pytest.mark.parametrize("name", ["mmtok", "cdpruner", "trimtokenator", "trim", "demand_coverage"])
def test_padding_of_the_prompt_changes_nothing(name: str) -> None:
    image, padded = make_tokens(2, (12, 12)), make_tokens(2, (12, 12))
    text, mask = image.prompt()
    longer = torch.cat([torch.full_like(text, 50.0), text], dim=1), torch.cat([mask & False, mask], dim=1)
    padded.prompt = lambda: longer
    for one, two in zip(reduce(image, name, budget=12), reduce(padded, name, budget=12), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", ["trim", "cdpruner"])
def test_clips_space_is_asked_for_or_taken_where_it_is(name: str) -> None:
    image = make_tokens(2, (12, 12))
    plain = reduce(image, name, budget=12)
    with pytest.raises(ReductionError, match="space 'clip' needs a tower with its text side, and this one has none"):
        reduce(image, name, budget=12, space="clip")
    patches, text = torch.randn(2, 144, 6), torch.randn(2, 1, 6)
    image.clip = lambda: (patches, text, torch.ones(2, 1, dtype=torch.bool))
    clip = reduce(image, name, budget=12)
    assert torch.equal(clip[2], reduce(image, name, budget=12, space="clip")[2])
    assert torch.equal(plain[2], reduce(image, name, budget=12, space="llm")[2]) and not torch.equal(plain[2], clip[2])


def test_trims_last_token_is_the_mean_of_the_rest() -> None:
    image = make_tokens(3, (12, 12))
    image.projected = image.features.clone()
    image.projected[:, 20:30] += 6 * image.text.mean(dim=1, keepdim=True)
    features, valid, origin = reduce(image, "trim", centre="visual")
    for index in range(3):
        kept = origin[index][valid[index]].tolist()
        rest = [patch for patch in range(144) if patch not in kept]
        assert kept[-1] == -1 and len(kept) > 1
        torch.testing.assert_close(features[index, len(kept) - 1], image.features[index, rest].mean(dim=0))
    everything = reduce(image, "trim", ratio=1)
    assert torch.equal(everything[0], image.features)


def test_prunesid_is_the_same_whatever_the_seed() -> None:
    image = make_tokens(2, (12, 12), width=32)
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outcomes.append(reduce(image, "prunesid", budget=16))
    assert all(torch.equal(one, two) for one, two in zip(*outcomes, strict=True))
    assert torch.equal(outcomes[0][0][:, :1], image.class_token) and (outcomes[0][2][:, 0] == -1).all()
    without = reduce(image, "prunesid", budget=16, class_token=False)[2]
    assert (without >= 0).all()


def test_dpc_knn_finds_the_bunches() -> None:
    """Bunches far from each other, of another number in each image: a token is the mean of a bunch."""
    generator = torch.Generator().manual_seed(0)
    image = make_tokens(2, (12, 12))
    bunch = torch.randint(0, 4, (2, 144), generator=generator) % torch.tensor([[4], [2]])
    middles = 3 * torch.eye(16)[:4]
    image.features = middles[bunch] + 0.05 * torch.randn(2, 144, 16, generator=generator)
    features, valid, _ = reduce(image, "dpc_knn", iqr_factor=30)
    assert valid.sum(dim=1).tolist() == [4, 2]
    for index in range(2):
        means = torch.stack([image.features[index][bunch[index] == one].mean(dim=0) for one in bunch[index].unique()])
        found = features[index][valid[index]]
        torch.testing.assert_close(found[found[:, :4].argmax(dim=1).argsort()], means)
    single = reduce(alone(image, 1), "dpc_knn", iqr_factor=30)
    torch.testing.assert_close(single[0], features[1:, :2])
    with pytest.raises(ReductionError, match="neighbours=null .* needs a budget"):
        build_reducer({"name": "dpc_knn", "neighbours": None})
