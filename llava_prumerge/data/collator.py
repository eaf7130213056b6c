"""Batches: samples padded to the longest, what their images are made of laid end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava_prumerge.data.conversation import IGNORE_INDEX

PAD_SIDES = ("right", "left")
OWN = ("input_ids", "labels", "id", "quarantined")
BESIDE_IDS = ("mm_token_type_ids", "token_type_ids", "region_of", "turn_of")
"""What an item may have for each of its tokens, zero where there is none."""


@dataclass(frozen=True)
class Collator:
    """Pads on one side; the mask follows from lengths, so a pad id that also occurs in text is no matter.

    Args:
        pad_id: fills `input_ids`.
        pad_side: "right" to train, "left" to generate.
    """

    pad_id: int
    pad_side: str = "right"

    def __post_init__(self) -> None:
        if self.pad_side not in PAD_SIDES:
            raise ValueError(f"pad_side {self.pad_side!r} is not known; accepted: {', '.join(PAD_SIDES)}")

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask`, `labels` [B, L], `pixel_values` [N, 3, S, S] if any, and `ids`.

        `labels` is there when the items have them, `ids` (a list) for messages, and so is `quarantined` (a list of
        `BadSample`) when some of the items stand in for others. Images keep the order of their samples. Whatever else items
        hold of images is laid end to end as well, padded with zeros where it differs in size.
        """
        rows = [torch.as_tensor(item["input_ids"], dtype=torch.long) for item in items]
        batch: dict[str, Any] = {
            "input_ids": self._pad(rows, self.pad_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in rows], 0),
        }
        if "labels" in items[0]:
            labels = [torch.as_tensor(item["labels"], dtype=torch.long) for item in items]
            batch["labels"] = self._pad(labels, IGNORE_INDEX)
        for key in dict.fromkeys(key for item in items for key in item if key not in OWN):
            found = [item[key] for item in items if item.get(key) is not None]
            if found:
                batch[key] = self._pad(found, 0) if key in BESIDE_IDS else _laid_out(found)  # pixels: [N, 3, S, S]
        batch["ids"] = [item.get("id") for item in items]
        if quarantined := [bad for item in items for bad in item.get("quarantined", ())]:
            batch["quarantined"] = quarantined
        return batch

    def _pad(self, rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, True, value, padding_side=self.pad_side)  # [B, L]


def _laid_out(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors end to end, all but the first dimension padded to the largest."""
    sizes = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - length for size, length in zip(sizes, tensor.shape[1:], strict=True)]
        padded.append(torch.nn.functional.pad(tensor, [n for size in reversed(missing) for n in (0, size)]))
    return torch.cat(padded)
