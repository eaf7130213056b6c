"""Mixing matrices against loops, and gradients through them."""

from __future__ import annotations

import pytest
import torch

from llava_prumerge.ops.select import leftover_weights, mix, nearest_weights, select


@pytest.mark.parametrize("merge", ["sum", "neighbours", "average"])
@pytest.mark.parametrize("neighbours", [0, 1, 4, 100])
def test_rows_sum_to_what_the_merge_says(merge: str, neighbours: int) -> None:
    keys, weights = torch.randn(2, 10, 6), torch.rand(2, 10)
    mixing = nearest_weights(keys, weights, torch.tensor([[3, 7], [0, 9]]), neighbours, merge)
    used = min(neighbours, 9)
    assert ((mixing > 0).sum(dim=2) == used + 1).all()
    total = mixing.sum(dim=2)
    if merge == "average":
        torch.testing.assert_close(total, torch.ones(2, 2))
    elif merge == "neighbours":
        torch.testing.assert_close(total, torch.full((2, 2), 2.0 if used else 1.0))
    else:
        torch.testing.assert_close(mixing[0, 0, 3], torch.tensor(1.0))


def test_unknown_merge_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="merge 'x' is not one of sum, neighbours, average"):
        nearest_weights(torch.randn(1, 3, 2), torch.rand(1, 3), torch.tensor([[0]]), 1, "x")


def test_leftover_sums_what_was_dropped() -> None:
    weights, dropped = torch.rand(2, 6), torch.tensor([[True, False] * 3, [False] * 6])
    features = torch.randn(2, 6, 4)
    row = mix(leftover_weights(weights, dropped, normalise=False), features)[:, 0]
    torch.testing.assert_close(row[0], (weights[0, ::2, None] * features[0, ::2]).sum(dim=0))
    assert (row[1] == 0).all()
    assert leftover_weights(weights, dropped, normalise=True)[0].sum() == pytest.approx(1)
    assert leftover_weights(weights, dropped, normalise=True)[1].isfinite().all()


def test_select_and_mix_pass_gradients_and_dtype() -> None:
    features = torch.randn(2, 6, 4, dtype=torch.bfloat16, requires_grad=True)
    index = torch.tensor([[0, 2], [5, 5]])
    picked = select(features, index)
    mixed = mix(nearest_weights(features.detach(), torch.rand(2, 6), index, 2, "sum"), features)
    assert picked.dtype == mixed.dtype == torch.bfloat16
    (picked.sum() + mixed.sum()).backward()
    assert features.grad.isfinite().all() and (features.grad[1, 5] != 0).all()


def test_scores_can_be_learnt_through_the_merge() -> None:
    weights = torch.rand(1, 6, requires_grad=True)
    mix(
        nearest_weights(torch.randn(1, 6, 4), weights, torch.tensor([[1]]), 3, "average"), torch.randn(1, 6, 4)
    ).sum().backward()
    assert (weights.grad != 0).sum() == 4
