"""Every decoder pruner on made-up sequences: budgets, batches, padding, and input as unhelpful as it can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoder_tokens import PRUNERS, build, layouts, make_tokens, run, shape_of, tokens_of, with_layout

from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.pruners import ScheduledPruner
from llava_prumerge.methods.registry import discover, fields_of

every = pytest.mark.parametrize("name", PRUNERS)
WITH_BUDGET = [name for name in PRUNERS if "budget" in fields_of(discover()[name])]
EARLY = 2  # the latest first drop with which the budgets below can be met
SCHEDULED = [name for name in WITH_BUDGET if issubclass(discover()[name], ScheduledPruner)]


def budgeted(name: str, budget: Any, shape: Any = None) -> Any:
    """A pruner with a budget; one whose first drop is late by default drops early."""
    late = {"layers": [EARLY]} if min(build(name).layers) > EARLY else {}
    return build(name, shape, budget=budget, **late)


def kept(name: str, tokens: Any, **settings: Any) -> list[list[set[int]]]:
    """Patches each sequence has in each layer."""
    found = layouts(build(name, **settings), tokens)
    return [[set(row[row >= 0].tolist()) for row in layout.origin] for layout in found]


@every
def test_it_acts_and_never_brings_back(name: str) -> None:
    counts = torch.stack(run(build(name), make_tokens()))  # [layers, B]
    assert (counts[0] == 64).all() and (counts[-1] < 64).all() and (counts[1:] <= counts[:-1]).all()


@every
def test_batch_equals_single_and_padding_does_not_matter(name: str) -> None:
    together = kept(name, make_tokens((64, 30, 64), after=(6, 4, 9)))
    right = kept(name, make_tokens((64, 30, 64), after=(6, 4, 9), pad="right"))
    assert together == right
    rows = make_tokens((64, 30, 64), after=(6, 4, 9))
    for row in range(3):
        layout = rows.layout
        real = layout.key_mask[row]
        content = [part[row : row + 1, real] for part in (rows.hidden,)]
        queries, keys = (
            part[row : row + 1].transpose(1, 2).flatten(2)[:, real] for part in (rows.queries(0), rows.keys(0))
        )
        alone = type(layout)(
            *(
                getattr(layout, field)[row : row + 1, real]
                for field in ("is_image", "key_mask", "position_ids", "origin")
            ),
            images=layout.images[row : row + 1],
        )
        assert [layer[0] for layer in kept(name, tokens_of(alone, *content, queries, keys))] == [
            one[row] for one in together
        ]


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize("budget", [20, 33, 40, 63, 64, 65, 1000, 30.5])
def test_budget_is_met_as_nearly_as_whole_tokens_allow(name: str, budget: float) -> None:
    counts = torch.stack(run(budgeted(name, budget), make_tokens())).double()
    met = counts.mean(dim=0)
    assert (met - min(budget, 64)).abs().max() <= {"rank_schedule": 0.0625}.get(name, 0.5)
    assert (met == met[0]).all()


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_budget_counts_what_a_reducer_left(name: str) -> None:
    """Ragged sequences: each meets it by itself, and those that already cost less keep all."""
    tokens = make_tokens((64, 30, 9), after=(6, 4, 9))
    counts = torch.stack(run(budgeted(name, 20, shape_of(reduced=True)), tokens)).double()
    assert counts.mean(dim=0).sub(torch.tensor([20.0, 20.0, 9.0])).abs().max() <= 0.5


@pytest.mark.parametrize("name", SCHEDULED)
def test_an_impossible_budget_is_refused_when_the_method_is_built(name: str) -> None:
    with pytest.raises(ReductionError, match=f"{name}: budget 8 .* cannot be met with 64 visual tokens"):
        budgeted(name, 8)
    behind = budgeted(name, 8, shape_of(reduced=True))  # who knows what the reducer will leave
    with pytest.raises(ReductionError, match=f"{name}: budget 8 .* cannot be met with 64"):
        run(behind, make_tokens())
    assert max(run(behind, make_tokens((9, 9, 9)))[-1].tolist()) < 9


@pytest.mark.parametrize("name", WITH_BUDGET)
@pytest.mark.parametrize("budget", [0, -3, "many", True])
def test_budgets_must_be_positive_numbers(name: str, budget: Any) -> None:
    with pytest.raises(ReductionError, match=f"{name}: budget"):
        build(name, budget=budget)


@every
def test_one_token_and_none(name: str) -> None:
    counts = run(build(name, shape_of(patches=1, reduced=True)), make_tokens((1, 0, 1)))
    assert all(count[1] == 0 and count[0] <= 1 for count in counts)
    assert (counts[0] == torch.tensor([1, 0, 1])).all()


@every
def test_equal_scores_leave_the_planned_number(name: str) -> None:
    tokens = make_tokens()
    same = torch.ones_like(tokens.hidden)
    counts = run(build(name), tokens_of(tokens.layout, same, same, same))
    if name in SCHEDULED:
        assert torch.equal(torch.stack(counts), torch.stack(run(build(name), tokens)))
    assert all(torch.isfinite(count).all() for count in counts)


@every
def test_broken_scores_are_an_error_that_names_the_method(name: str) -> None:
    tokens = make_tokens()
    broken = torch.full_like(tokens.hidden, float("nan"))
    pruner = build(name)
    try:
        counts = run(pruner, tokens_of(tokens.layout, broken, broken, broken))
    except ReductionError as error:
        assert str(error).startswith(f"{name}: ") and "NaN" in str(error)
    else:
        assert not discover()[name].ranks, "NaN went through"
        assert torch.equal(torch.stack(counts), torch.stack(run(build(name), tokens)))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    tokens = make_tokens()
    queries, keys = (part.transpose(1, 2).flatten(2).to(dtype) for part in (tokens.queries(0), tokens.keys(0)))
    assert (run(build(name), tokens_of(tokens.layout, tokens.hidden.to(dtype), queries, keys))[-1] < 64).all()


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "rank_schedule"])
def test_in_training_the_question_ranks_and_not_the_answer(name: str) -> None:
    """Labels on the last three tokens: what stays is what stays without those."""
    tokens = make_tokens((64, 64), after=(6, 9), pad="right")
    layout = tokens.layout
    answer = layout.last_index()[:, None]
    targets = (torch.arange(layout.key_mask.shape[1]) >= answer - 3) & layout.key_mask
    labelled = with_layout(tokens, shift_labels=torch.where(targets, 5, -100))
    assert torch.equal(labelled.layout.turn_ends().nonzero()[:, 1], layout.last_index() - 3)
    cut = with_layout(tokens, key_mask=layout.key_mask & (torch.arange(layout.key_mask.shape[1]) <= answer - 3))
    assert kept(name, labelled) == kept(name, cut) != kept(name, tokens)


@every
def test_settings_print(name: str) -> None:
    pruner = build(name)
    assert str(list(pruner.layers)[0]) in pruner.extra_repr()
    assert pruner.later_turns in ("none", "text", "images")


@every
def test_in_training_every_rank_asks_the_same(name: str) -> None:
    """T4: a rank without images, or whose images lose nothing, must still run the layers' projections."""
    asked = []
    for visual in ((64, 64), (0, 0), (1, 0)):
        tokens = make_tokens(visual, after=(6, 9))
        calls = spied(tokens)
        pruner = build(name, shape_of(reduced=True)).train()
        acts = [pruner(layer, tokens) is not None for layer in pruner.layers]
        assert acts[-1] or not pruner.ranks
        asked.append((calls, acts))
    assert asked[0] == asked[1] == asked[2] or not pruner.ranks
    assert bool(asked[0][0]) == discover()[name].ranks


def spied(tokens: Any) -> list[tuple[str, int]]:
    """What will have been asked of the tokens."""
    calls: list[tuple[str, int]] = []
    for part in ("attention", "queries", "keys", "mean_query", "nearness"):
        plain = getattr(tokens, part)

        def ask(layer: int, *rest: Any, plain: Any = plain, part: str = part) -> Any:
            calls.append((part, layer))
            return plain(layer, *rest)

        setattr(tokens, part, ask)
    return calls
