"""Tokens per layer: rates are kept, budgets met as nearly as whole tokens allow, the impossible refused."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout
from llava_prumerge.ops.token_schedule import TokenSchedule, at_depth, constant, falling_sigmoid, geometric, raised


def layout_of(*visual: int, images: tuple[int, ...] | None = None) -> TokenLayout:
    length = max(visual) + 2
    is_image = torch.arange(length) < torch.tensor(visual)[:, None]
    whole = torch.ones_like(is_image)
    places = torch.arange(length).expand(len(visual), -1)
    return TokenLayout(is_image, whole, places, places, images=None if images is None else torch.tensor(images))


@pytest.mark.parametrize(
    "present, keep, expected", [(576, 0.5, 288), (30, 0.1, 3), (31, 0.1, 4), (1, 0.01, 1), (7, 0.0, 0), (7, 1, 7)]
)
def test_shares_are_rounded_up(present: int, keep: float, expected: int) -> None:
    assert TokenSchedule("m", 8, (2,), constant, keep).plan(present) == (expected,)


def test_one_drop_follows_the_formula() -> None:
    """n = (budget * L - K * P) / (L - K): FastV's published 144 tokens after layer 2 of 32 are 171 equivalent ones."""
    plan = TokenSchedule("m", 32, (2,), constant, budget=171)
    assert plan.plan(576) == (144,) and plan.equivalent(576) == 171
    assert TokenSchedule("m", 32, (2,), constant, 0.25).equivalent(576) == 171


@pytest.mark.parametrize("layers, layer, present", itertools.product([6, 8, 32], [1, 2, 5], [17, 144, 576]))
def test_one_drop_is_the_nearest_whole_number(layers: int, layer: int, present: int) -> None:
    tried = 0
    for budget in range(1, present + 20, 3):
        cost = lambda count: (layer * present + (layers - layer) * count) / layers  # noqa: E731
        if cost(1) > budget:
            with pytest.raises(
                ReductionError, match=f"m: budget {budget} .* cannot be met with {present} visual tokens"
            ):
                TokenSchedule("m", layers, (layer,), constant, budget=budget, patches=present)
            continue
        plan = TokenSchedule("m", layers, (layer,), constant, budget=budget)
        best = min(abs(cost(count) - budget) for count in range(1, present + 1))
        assert abs(plan.equivalent(present) - budget) == pytest.approx(best, abs=1e-9)
        tried += 1
    assert tried


@pytest.mark.parametrize("present", [10, 40, 144, 576])
@pytest.mark.parametrize("share", [0.13, 0.25, 0.5, 0.77, 0.99, 1.0, 1.5])
def test_a_drop_in_each_layer_meets_a_budget_exactly(present: int, share: float) -> None:
    layers, budget = 32, math.ceil(present * share)
    curve = partial(falling_sigmoid, places=tuple(range(1, layers)), floor=0.01, steepness=0.7)
    plan = TokenSchedule("m", layers, range(1, layers), curve, budget=budget, bounds=(-60, 100))
    counts = plan.plan(present)
    assert list(counts) == sorted(counts, reverse=True) and counts[-1] >= 1 and counts[0] <= present
    assert plan.equivalent(present) == pytest.approx(min(budget, present), abs=1e-12)


@pytest.mark.parametrize("drops", [(2, 4, 6), (1, 2, 7), (3,), (1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("present", [5, 64, 100])
def test_stages_meet_a_budget_within_half_a_token(drops: tuple[int, ...], present: int) -> None:
    layers, tried = 8, 0
    longest = max(end - start for start, end in zip(drops, [*drops[1:], layers], strict=True))
    for budget in range(1, present + 1):
        plan = TokenSchedule("m", layers, drops, partial(geometric, drops=len(drops)), budget=budget)
        try:
            counts = plan.plan(present)
        except ReductionError:
            assert (drops[0] * present + layers - drops[0]) / layers > budget
            continue
        assert list(counts) == sorted(counts, reverse=True) and counts[-1] >= 1
        assert abs(plan.equivalent(present) - budget) * layers <= longest / 2 + 1e-9
        tried += 1
    assert tried


def test_a_budget_keeps_the_curves_form() -> None:
    """Lambda is solved for: each stage keeps about the same share of the one before."""
    plan = TokenSchedule("m", 32, (8, 16, 24), partial(geometric, drops=3), budget=200)
    counts = [576, *plan.plan(576)]
    shares = [after / before for before, after in itertools.pairwise(counts)]
    assert max(shares) - min(shares) < 0.03 and plan.equivalent(576) == pytest.approx(200, abs=0.13)
    rates = (1.0, 0.8, 0.8, 0.4, 0.1)
    plan = TokenSchedule("m", 6, range(1, 6), partial(raised, rates=rates), budget=50)
    counts = plan.plan(100)
    assert plan.equivalent(100) == 50 and counts[0] == 100 and abs(counts[1] - counts[2]) <= 1
    power = math.log(counts[3] / 100) / math.log(0.4)
    assert counts[1] == pytest.approx(100 * 0.8**power, abs=3) and counts[4] == pytest.approx(100 * 0.1**power, abs=3)


def test_raised_rates_are_themselves_in_the_middle() -> None:
    rates = (1.0, 0.5, 0.0)
    assert (
        raised(0.5, rates) == rates and raised(1.0, rates) == (1.0, 1.0, 1.0) and raised(0.0, rates) == (1.0, 0.0, 0.0)
    )


def test_rates_that_never_fall_cannot_meet_a_budget() -> None:
    plan = TokenSchedule("m", 4, (1, 2, 3), partial(raised, rates=(1.0, 1.0, 0.5)), budget=10)
    with pytest.raises(ReductionError, match="budget 10 .* cost 30.25"):
        plan.plan(40)


@pytest.mark.parametrize("budget", [0, -1, True, "40", float("nan")])
def test_budgets_are_numbers_above_0(budget: object) -> None:
    with pytest.raises(ReductionError, match="m: budget .* is not a number of tokens above 0"):
        TokenSchedule("m", 8, (2,), constant, budget=budget)


def test_counts_are_per_sequence_and_per_image() -> None:
    plan = TokenSchedule("m", 8, (2, 4), partial(geometric, drops=2), budget=20)
    layout = layout_of(40, 0, 80, 40, images=(1, 0, 2, 1))
    first, second = plan.counts(2, layout), plan.counts(4, layout)
    assert first[1] == second[1] == 0 and first[0] == first[3]
    expected = TokenSchedule("m", 8, (2, 4), partial(geometric, drops=2), budget=20).plan(80, images=2)
    assert (first[2].item(), second[2].item()) == expected
    assert abs(2 * 80 + 2 * expected[0] + 4 * expected[1] - 2 * 20 * 8) <= 1, "twice the budget for two images"


def test_nothing_to_drop_is_none() -> None:
    plan = TokenSchedule("m", 8, (2, 4), partial(raised, rates=(1.0, 0.5)))
    assert plan.counts(2, layout_of(10, 6)) is None and plan.counts(4, layout_of(10, 6)).tolist() == [5, 3]


def test_drops_are_asked_for_in_order() -> None:
    plan = TokenSchedule("m", 8, (2, 4), partial(geometric, drops=2), 0.5)
    with pytest.raises(ReductionError, match="layer 4 before layer 2"):
        plan.counts(4, layout_of(10))


def test_best_takes_the_highest_and_refuses_nan() -> None:
    plan, layout = TokenSchedule("m", 8, (2,), constant, 0.5), layout_of(4, 2)
    scores = torch.tensor([[0.1, 0.4, 0.4, 0.3, 9.0, float("nan")], [0.2, 0.5, 9.0, 9.0, 9.0, 9.0]])
    keep = plan.best(layout, scores, torch.tensor([2, 1]))
    assert keep.tolist() == [[False, True, True, False, True, True], [False, True, True, True, True, True]]
    scores[0, 0] = float("nan")
    with pytest.raises(ReductionError, match="m: the scores of the visual tokens hold NaN"):
        plan.best(layout, scores, torch.tensor([2, 1]))


@pytest.mark.parametrize(
    "share, layers, layer",
    [(8 / 32, 32, 8), (14 / 32, 32, 14), (14 / 32, 6, 3), (4 / 32, 4, 1), (0.01, 8, 1), (1, 8, 7)],
)
def test_depth_is_to_the_nearest_layer(share: float, layers: int, layer: int) -> None:
    assert at_depth(share, layers) == layer


def test_the_sigmoid_is_the_papers() -> None:
    rates = falling_sigmoid(3.0, (1.0, 3.0, 50.0), 0.2, 0.5)
    assert rates[0] == pytest.approx(1 - 0.8 / (1 + math.exp(1.0))) and rates[1] == pytest.approx(0.6)
    assert rates[2] == pytest.approx(0.2, abs=1e-9) and falling_sigmoid(1e9, (1.0,), 0.0, 1.0) == (1.0,)
