"""Turns packed behind one image are, to the loss and its gradients, what they are in sequences of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, tiny_model
from torch import Tensor

from llava_prumerge.model.errors import ModelError
from llava_prumerge.ops.layout import TokenLayout

METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "adaptive, ragged": {"vision": {"name": "prumerge", "iqr_factor": 0.2}},
    "places kept": {"vision": {"name": "prumerge_plus", "budget": 6, "positions": "original"}},
    "weighed": {"vision": {"name": "divprune", "budget": 6, "anchors": 0.5, "proportional": True}},
    "random": {"vision": {"name": "random", "budget": 5}},
}
SHARED = [[1, 17, *[IMAGE] * PATCHES], [1, *[IMAGE] * PATCHES, 9, *[IMAGE] * PATCHES], [1, 8]]
TURNS = [
    [([4, 5, 6], [7, 2]), ([5], [8, 9, 3, 2]), ([4, 11, 12, 13], [2])],
    [([21, 22], [23, 24, 2])],
    [([31], [32]), ([33, 34], [35, 36])],
]


def alone() -> tuple[list[list[int]], list[list[int]]]:
    """Ids and labels of every turn in a sequence of its own."""
    ids, labels = [], []
    for shared, turns in zip(SHARED, TURNS, strict=True):
        for question, answer in turns:
            ids.append([*shared, *question, *answer])
            labels.append([-100] * (len(shared) + len(question)) + answer)
    return ids, labels


def packed() -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Ids, labels and turns of every record."""
    ids, labels, turn_of = [], [], []
    for shared, turns in zip(SHARED, TURNS, strict=True):
        ids.append([*shared, *(token for turn in turns for part in turn for token in part)])
        labels.append([-100] * len(shared) + [label for q, a in turns for label in [-100] * len(q) + a])
        turn_of.append([0] * len(shared) + [n for n, (q, a) in enumerate(turns, 1) for _ in (*q, *a)])
    return ids, labels, turn_of


def padded(rows: list[list[int]], fill: int, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, fill, padding_side=side)


def gradients(model: torch.nn.Module, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize(
    ("method", "attn", "side"),
    [
        *((method, *how) for method in METHODS for how in (("sdpa", "right"), ("eager", "left"))),
        ("none", "eager", "right"),
    ],
)
def test_packed_turns_are_those_of_sequences_of_their_own(method: str, attn: str, side: str) -> None:
    model = tiny_model(METHODS[method], attn).train()
    model.model.vision_tower.requires_grad_(False).eval()
    images = pixels(3)
    ids, labels = alone()
    # The record's images once for each of its turns.
    inputs = rows_of(*ids, side=side) | {"labels": padded(labels, -100, side)}
    inputs["pixel_values"] = images[[0, 0, 0, 1, 2]]
    apart = gradients(model, **inputs, use_cache=False)
    ids, labels, turns = packed()
    inputs = rows_of(*ids, side=side) | {"labels": padded(labels, -100, side), "turn_of": padded(turns, 0, side)}
    loss, grads = gradients(model, **inputs, pixel_values=images)
    torch.testing.assert_close(loss, apart[0], atol=1e-6, rtol=1e-6)
    assert set(grads) == set(apart[1]) and any("multi_modal_projector" in name for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, apart[1][name], atol=2e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    del inputs["turn_of"]
    assert abs(model(**inputs, pixel_values=images, use_cache=False).loss.item() - loss.item()) > 1e-4, (
        "they did see each other"
    )


def test_positions_go_on_behind_what_is_shared() -> None:
    turns = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0], [0, 0, 0, 0, 0, 1, 3, 3]])
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]]).bool()
    blank = torch.zeros_like(turns)
    layout = TokenLayout(blank.bool(), real, blank, blank, turns=turns).renumbered(torch.tensor([[0], [5]]))
    assert layout.position_ids[0, :7].tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert layout.position_ids[1, 2:].tolist() == [5, 6, 7, 8, 8, 9]
    moved, _ = layout.compact(torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1]] * 2).bool(), turns)
    assert moved.renumbered().position_ids[0, -5:].tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("reduction", "name"),
    [
        ({"decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.5}}, "fastv"),
        ({"vision": {"name": "trsm", "budget": 5}}, "trsm"),
        ({"vision": {"name": "prumerge", "budget": 9}, "decoder": {"name": "dart"}}, "prumerge and dart"),
    ],
)
def test_methods_that_choose_by_the_prompt_are_refused(reduction: dict[str, Any], name: str) -> None:
    ids, labels, turns = packed()
    inputs = rows_of(*ids, side="right") | {
        "labels": padded(labels, -100, "right"),
        "turn_of": padded(turns, 0, "right"),
    }
    with pytest.raises(
        ModelError, match=f"^packing=turns: {name} would choose tokens by all turns of a record together; take"
    ):
        tiny_model(reduction)(**inputs, pixel_values=pixels(3))


def test_caches_are_refused() -> None:
    with pytest.raises(ModelError, match="turn_of is for training"):
        tiny_model()(**rows_of([1, 2, 3]), turn_of=torch.zeros(1, 3, dtype=torch.long), use_cache=True)
