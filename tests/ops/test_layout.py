"""Tokens that are dropped take everything on the sequence axis with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout, shift_labels


def layout_of(key_mask: Tensor, seed: int = 0) -> TokenLayout:
    """Random content at the real places of a [B, L] mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = key_mask.shape
    is_image = (torch.rand(shape, generator=generator) < 0.5) & key_mask
    labels = torch.randint(0, 50, shape, generator=generator).masked_fill(~key_mask | is_image, IGNORE_INDEX)
    layout = TokenLayout(
        is_image=is_image,
        key_mask=key_mask,
        position_ids=torch.zeros(shape, dtype=torch.long),
        origin=torch.where(is_image, torch.randint(0, 99, shape, generator=generator), -1),
        shift_labels=shift_labels(labels),
        key_weight=torch.rand(shape, generator=generator),
    )
    return layout.renumbered()


MASKS = {
    "left padding": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1]]).bool(),
    "right padding": torch.tensor(
        [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]]
    ).bool(),
    "none": torch.ones(3, 8, dtype=torch.bool),
    "holes": torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]).bool(),
}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("seed", range(6))
def test_compact_equals_dropping_row_by_row(padding: str, seed: int) -> None:
    layout = layout_of(MASKS[padding], seed)
    keep = torch.rand(3, 8, generator=torch.Generator().manual_seed(100 + seed)) < 0.6
    keep[:, -3:] |= True
    hidden, flags = torch.randn(3, 8, 5), torch.arange(24).view(3, 8)
    new, moved, moved_flags = layout.compact(keep, hidden, flags)
    stays = [(keep & layout.key_mask)[row].nonzero()[:, 0] for row in range(3)]
    longest = max(len(places) for places in stays)
    assert new.key_mask.shape == (3, longest) and moved.shape == (3, longest, 5)
    for row, places in enumerate(stays):
        real = slice(longest - len(places), longest)  # padding on the left
        assert new.key_mask[row].tolist() == [False] * (longest - len(places)) + [True] * len(places)
        for field in ("is_image", "position_ids", "origin", "shift_labels", "key_weight"):
            assert torch.equal(getattr(new, field)[row, real], getattr(layout, field)[row, places]), field
        assert torch.equal(moved[row, real], hidden[row, places])
        assert torch.equal(moved_flags[row, real], flags[row, places])
        gap = slice(0, longest - len(places))
        assert not new.is_image[row, gap].any()
        assert (new.origin[row, gap] == -1).all() and (new.shift_labels[row, gap] == IGNORE_INDEX).all()


def test_compact_shortens_only_rows_that_drop_and_keeps_every_target() -> None:
    """Targets belong to tokens: what remains predicts what it did before, though its neighbour is gone."""
    labels = torch.tensor([[5, 6, 7, 8], [IGNORE_INDEX, 3, 4, IGNORE_INDEX]])
    layout = layout_of(torch.ones(2, 4, dtype=torch.bool))
    layout = TokenLayout(layout.is_image, layout.key_mask, layout.position_ids, layout.origin, shift_labels(labels))
    (new,) = layout.compact(torch.tensor([[True, False, True, True], [True, True, True, True]]))
    assert new.shift_labels.tolist() == [[IGNORE_INDEX, 6, 8, IGNORE_INDEX], [3, 4, IGNORE_INDEX, IGNORE_INDEX]]


def test_compact_with_known_length_needs_no_host() -> None:
    layout = layout_of(MASKS["left padding"])
    keep = torch.zeros(3, 8, dtype=torch.bool)
    keep[:, -2:] = True
    (new,) = layout.compact(keep, length=2)
    (found,) = layout.compact(keep)
    assert new.key_mask.shape == (3, 2) and torch.equal(new.origin, found.origin)


def test_compact_of_everything_keeps_left_padded_rows_as_they_are() -> None:
    layout = layout_of(MASKS["left padding"])
    (new,) = layout.compact(torch.ones(3, 8, dtype=torch.bool))
    for field in ("is_image", "key_mask", "origin"):
        assert torch.equal(getattr(new, field), getattr(layout, field)), field
    assert torch.equal(new.shift_labels[new.key_mask], layout.shift_labels[layout.key_mask])


def test_positions_are_consecutive_after_renumbering() -> None:
    layout = layout_of(MASKS["holes"])
    for row in range(3):
        assert layout.position_ids[row][layout.key_mask[row]].tolist() == list(range(int(layout.key_mask[row].sum())))
    later = layout.renumbered(torch.tensor([[10], [20], [30]]))
    assert later.position_ids[1][layout.key_mask[1]][0] == 20


@pytest.mark.parametrize(
    "padding, last", [("left padding", [7, 7, 7]), ("right padding", [5, 7, 2]), ("holes", [6, 7, 7])]
)
def test_last_index(padding: str, last: list[int]) -> None:
    assert layout_of(MASKS[padding]).last_index().tolist() == last


def test_gates_multiply() -> None:
    layout = layout_of(MASKS["none"])
    bare = TokenLayout(layout.is_image, layout.key_mask, layout.position_ids, layout.origin)
    half = torch.full((3, 8), 0.5)
    assert torch.equal(bare.gate(half).key_weight, half)
    assert torch.equal(bare.gate(half).gate(half).key_weight, half * half)


def test_gradient_reaches_what_stays_and_nothing_else() -> None:
    layout = layout_of(MASKS["none"])
    hidden = torch.randn(3, 8, 2, requires_grad=True)
    keep = torch.zeros(3, 8, dtype=torch.bool)
    keep[:, ::2] = True
    layout.compact(keep, hidden)[1].sum().backward()
    assert torch.equal(hidden.grad[..., 0] != 0, keep)
