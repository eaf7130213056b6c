"""Counts of what a reduction did, kept as running tensors so that counting costs no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor


class ReductionStatistics:
    """Kept tokens per image, padding of the batches, visual tokens averaged over decoder layers."""

    def __init__(self) -> None:
        self._rows: list[
            Tensor
        ] = []  # per batch: images, kept sum, least, most, padding, places, visual tokens per layer
        self._limit = 4096

    @torch.no_grad()
    def add(self, valid: Tensor, key_mask: Tensor, visual: list[Tensor]) -> None:
        """Count one batch.

        Args:
            valid: [N, K] tokens each image leaves the reducer with.
            key_mask: [B, L'] of the decoder's last layer.
            visual: per decoder layer, which places hold visual tokens; neighbours share the tensor.
        """
        kept = valid.sum(dim=1)
        total, previous, last = 0, None, None
        for mask in visual:
            if mask is not previous:
                previous, last = mask, mask.sum()
            total = total + last
        numbers = (
            len(kept),
            kept.sum(),
            kept.amin(),
            kept.amax(),
            (~key_mask).sum(),
            key_mask.numel(),
            total / len(visual),
        )
        self._rows.append(
            torch.stack(
                [
                    torch.as_tensor(
                        number, dtype=torch.float64, device="cpu" if isinstance(number, int) else number.device
                    ).to(valid.device)
                    for number in numbers
                ]
            )
        )
        if len(self._rows) > self._limit:
            self._rows = [self._folded()]

    def _folded(self) -> Tensor:
        rows = torch.stack(self._rows)
        folded = rows.sum(dim=0)
        folded[2], folded[3] = rows[:, 2].amin(), rows[:, 3].amax()
        return folded

    def read(self) -> dict[str, float]:
        """All counts since the last reading; zeros where no image was seen."""
        if not self._rows:
            return dict.fromkeys(
                ("images", "kept_mean", "kept_min", "kept_max", "padding_share", "equivalent_tokens"), 0.0
            )
        images, kept, least, most, padding, places, visual = self._folded().tolist()
        self._rows = []
        return {
            "images": images,
            "kept_mean": kept / images,
            "kept_min": least,
            "kept_max": most,
            "padding_share": padding / places,
            "equivalent_tokens": visual / images,
        }
