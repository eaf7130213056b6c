"""Batches: padding, masks and the order of images."""

from __future__ import annotations

import pytest
import torch

from llava_prumerge.data.collator import Collator

ITEMS = [
    {"input_ids": [5, 0, 6], "labels": [-100, 0, 6], "pixel_values": torch.full((2, 3, 4, 4), 1.0), "id": "a"},
    {"input_ids": [7], "labels": [7], "id": "b"},
    {"input_ids": [8, 9], "labels": [-100, 9], "pixel_values": torch.full((1, 3, 4, 4), 2.0), "id": "c"},
]


def test_rows_are_padded_on_the_right() -> None:
    batch = Collator(pad_id=0)(ITEMS)
    assert batch["input_ids"].tolist() == [[5, 0, 6], [7, 0, 0], [8, 9, 0]]
    # The first row's 0 is text: a mask made by comparing with the pad id would lose it.
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 0, 6], [7, -100, -100], [-100, 9, -100]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 1.0, 2.0]
    assert batch["ids"] == ["a", "b", "c"]


def test_rows_are_padded_on_the_left_to_generate() -> None:
    items = [{"input_ids": torch.tensor(item["input_ids"])} for item in ITEMS]
    batch = Collator(pad_id=3, pad_side="left")(items)
    assert batch["input_ids"].tolist() == [[5, 0, 6], [3, 3, 7], [3, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert set(batch) == {"input_ids", "attention_mask", "ids"}


def test_a_batch_without_images_has_no_pixels() -> None:
    assert "pixel_values" not in Collator(pad_id=0)([ITEMS[1]])


def test_an_unknown_side_is_an_error() -> None:
    with pytest.raises(ValueError, match="pad_side 'both' is not known; accepted: right, left"):
        Collator(pad_id=0, pad_side="both")
