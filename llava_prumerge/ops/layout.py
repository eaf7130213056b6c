"""Everything that shares the sequence axis, moved together: the one place where tokens are dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from llava_prumerge.ops.errors import ReductionError

IGNORE_INDEX = -100
LEAST_WEIGHT = 1e-6
"""Of a key: below it attention logits are no longer told apart, and have no gradient."""


class Calibration(NamedTuple):
    """What attention logits get for the distance of query and key: log(constant - D), on visual keys, or where `text` on all."""

    constant: float
    text: bool = False


def shift_labels(labels: Tensor) -> Tensor:
    """Labels moved one to the left, so that position i holds the target of token i. [B, L] -> [B, L]

    Shifting comes before any token is dropped: afterwards the neighbour to the right may be another token.
    """
    return torch.cat([labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORE_INDEX)], dim=1)


@dataclass(frozen=True)
class TokenLayout:
    """What each place of a batch of sequences holds.

    Attributes:
        is_image: [B, L] bool, a visual token.
        key_mask: [B, L] bool, False for padding.
        position_ids: [B, L] rotary positions.
        origin: [B, L] raster index of the patch a visual token stands for; -1 for text and for tokens that stand for no single patch.
        shift_labels: [B, L] targets, already shifted, or None.
        key_weight: [B, L] gates in (0, 1] on attention keys while a pruner trains, or None.
        images: [B] images of each sequence, or None where nobody counted.
        columns: [B, L] where each token stood in what the caller passed in, or None where nobody asks.
        turns: [B, L] the turn a token belongs to, from 1, where turns do not see each other; 0 for what they share. Or None.
    """

    is_image: Tensor
    key_mask: Tensor
    position_ids: Tensor
    origin: Tensor
    shift_labels: Tensor | None = None
    key_weight: Tensor | None = None
    images: Tensor | None = None
    columns: Tensor | None = None
    turns: Tensor | None = None

    def compact(
        self, keep: Tensor, *states: Tensor, length: int | None = None, order: Tensor | None = None
    ) -> tuple[TokenLayout, ...]:
        """Drop tokens; order is kept and ragged rows are padded on the left.

        Args:
            keep: [B, L] bool; padding is dropped in any case.
            states: tensors [B, L, ...] that move along.
            length: the longest kept row where the caller knows it; otherwise one host synchronisation finds it.
            order: [B, L] whole numbers from 0, by whose size what is kept is arranged in place of its order.

        Returns:
            The new layout followed by the moved states, all of the new length.
        """
        keep = keep & self.key_mask
        length = int(keep.sum(dim=1).amax()) if length is None else length
        key = keep.to(torch.uint8) if order is None else order.masked_fill(~keep, -1)
        index = torch.argsort(key, dim=1, stable=True)[:, keep.shape[1] - length :]  # [B, L'], dropped first
        mask = keep.gather(1, index)
        layout = TokenLayout(
            is_image=self.is_image.gather(1, index) & mask,
            key_mask=mask,
            position_ids=self.position_ids.gather(1, index),
            origin=self.origin.gather(1, index).masked_fill(~mask, -1),
            shift_labels=None
            if self.shift_labels is None
            else self.shift_labels.gather(1, index).masked_fill(~mask, IGNORE_INDEX),
            key_weight=None if self.key_weight is None else self.key_weight.gather(1, index),
            images=self.images,
            columns=None if self.columns is None else self.columns.gather(1, index),
            turns=None if self.turns is None else self.turns.gather(1, index),
        )
        first = torch.arange(len(index), device=index.device)[:, None] * keep.shape[1]
        rows = (first + index).flatten()  # whole rows at once: many times as fast as gathering value by value
        moved = [state.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape) for state in states]
        return layout, *moved

    def gate(self, weight: Tensor) -> TokenLayout:
        """Multiply gates [B, L] in (0, 1] into the key weights."""
        return replace(self, key_weight=weight if self.key_weight is None else self.key_weight * weight)

    def to(self, device: torch.device) -> TokenLayout:
        """On another device; itself where it is there."""
        if self.key_mask.device == device:
            return self
        return replace(
            self, **{key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)}
        )

    def renumbered(self, start: Tensor | int = 0) -> TokenLayout:
        """Consecutive positions from `start` ([B, 1] or a number), as LLaVA numbers whatever tokens it is given.

        Those of each turn that does not see the others go on behind what the turns share.
        """
        positions = self.key_mask.long().cumsum(dim=1) - 1
        if self.turns is not None:
            positions = self._by_turn(positions, self.turns)
        return replace(self, position_ids=positions.clamp(min=0) + start)

    def _by_turn(self, positions: Tensor, turns: Tensor) -> Tensor:
        """Consecutive positions [B, L], counted anew in each turn from the end of what they share."""
        turns = turns.masked_fill(~self.key_mask, 0)
        most, unused = int(turns.amax()) + 1, positions.shape[1]
        first = positions.new_full((len(turns), most), unused)  # [B, turns]
        first = first.scatter_reduce(1, turns, positions.masked_fill(~self.key_mask, unused), "amin")
        shared = (self.key_mask & (turns == 0)).sum(dim=1, keepdim=True)
        return torch.where(turns > 0, positions - first.gather(1, turns) + shared, positions)

    def next_position(self) -> Tensor:
        """The position of the token that comes next in each row. [B]"""
        if self.key_mask.shape[1] == 1:  # a decoding step, for which every call counts
            return (self.position_ids + self.key_mask)[:, 0]
        return self.position_ids.masked_fill(~self.key_mask, -1).amax(dim=1) + 1

    def last_index(self) -> Tensor:
        """Index of each row's last real token. [B]"""
        places = torch.arange(self.key_mask.shape[1], device=self.key_mask.device)
        return torch.where(self.key_mask, places, -1).amax(dim=1).clamp(min=0)

    def turn_ends(self) -> Tensor:
        """The tokens after which answers begin, one for each turn; the last token where there are no labels. [B, L] bool

        A method that ranks by the question must do so in training too, where the answers are part of the sequence.
        """
        places = torch.arange(self.key_mask.shape[1], device=self.key_mask.device)
        last = places == self.last_index()[:, None]
        if self.shift_labels is None:
            return last
        supervised = self.shift_labels != IGNORE_INDEX
        ends = supervised & ~torch.cat([supervised.new_zeros(len(last), 1), supervised[:, :-1]], dim=1)
        return torch.where(supervised.any(dim=1, keepdim=True), ends, last)

    def question_mask(self) -> Tensor:
        """The prompts' text tokens that see a visual token; the last of each turn where there is none. [B, L] bool"""
        asks = self.key_mask & ~self.is_image & (self.is_image.cumsum(dim=1) > 0)
        if self.shift_labels is not None:  # what is predicted is an answer's
            asks[:, 1:] &= self.shift_labels[:, :-1] == IGNORE_INDEX
        return asks | (self.turn_ends() & ~asks.any(dim=1, keepdim=True))

    def question_rows(self) -> tuple[Tensor, Tensor]:
        """Indices of the questions' tokens and their weights, see `rows_of`."""
        return rows_of(self.question_mask())


def rows_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of what a mask [B, L] marks, and weights: 1, or 0 for padding. Costs one host synchronisation.

    Returns:
        [B, R] and [B, R] float32.
    """
    most = int(mask.sum(dim=1).amax())
    rows = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]  # [B, R], what is marked first
    return rows, mask.gather(1, rows).float()


def scatter_back(states: Tensor, layout: TokenLayout, length: int, blank: float = 0.0) -> Tensor:
    """States at the places their tokens had in what the caller passed in, and `blank` where a token is gone.

    Args:
        states: [B, L', ...].
        layout: of these, with columns.
        length: L, of what was passed in.
        blank: see above.

    Returns:
        [B, L, ...].

    Raises:
        ReductionError: the layout has no columns: it does not know where its tokens stood.
    """
    if layout.columns is None:
        raise ReductionError("this layout does not say where its tokens stood in what was passed in")
    place = layout.columns.masked_fill(~layout.key_mask, length)  # padding goes to a place that is cut off
    full = states.new_full((len(states), length + 1, *states.shape[2:]), blank)
    return full.scatter(1, place.view(*place.shape, *[1] * (states.dim() - 2)).expand_as(states), states)[:, :length]
