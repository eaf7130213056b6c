"""Counts of what a reduction did, kept as running tensors so that counting costs no host synchronisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST, MOST = ("kept_min", "equivalent_min"), ("kept_max", "equivalent_max")
NAMES = ("images", "tiles", "full_mean", "kept_mean", "kept_per_tile", "kept_min", "kept_max", "padding_share")
EQUIVALENT = ("equivalent_tokens", "equivalent_min", "equivalent_max")


class ReductionStatistics:
    """Kept tokens per image, padding of the batches, visual tokens of each decoder layer and averaged over them."""

    def __init__(self) -> None:
        self._sums: list[
            Tensor
        ] = []  # per batch: images, kept tokens, padding, places, tiles, placeholders, and visual tokens of each layer
        self._ends: list[Tensor] = []  # per batch: LEAST, then MOST with the sign turned
        self._limit = 4096

    @torch.no_grad()
    def add(
        self,
        kept: Tensor,
        key_mask: Tensor,
        visual: Tensor,
        images: Tensor,
        tiles: int | None = None,
        full: int = 0,
    ) -> None:
        """Count one batch.

        Args:
            kept: [N] tokens that each image leaves the reducer with.
            key_mask: [B, L'] of the decoder's last layer.
            visual: [B, layers] visual tokens that each decoder layer sees.
            images: [B] images of each sequence.
            tiles: parts of images that the tower saw; each image is one where nobody says.
            full: placeholders of all images: the visual tokens without a method.
        """
        counted = [len(kept), key_mask.numel(), len(kept) if tiles is None else tiles, full]
        number, places, parts, whole = torch.tensor(counted, device=kept.device)
        sums = torch.stack([number, kept.sum(), (~key_mask).sum(), places, parts, whole])
        equivalent = visual.double().mean(dim=1) / images.clamp(min=1)  # [B]
        blank = images == 0
        ends = [
            kept.amin(),
            equivalent.masked_fill(blank, torch.inf).amin(),
            -kept.amax(),
            -equivalent.masked_fill(blank, -torch.inf).amax(),
        ]
        self._sums.append(torch.cat([sums, visual.sum(dim=0)]).double())
        self._ends.append(torch.stack([end.double() for end in ends]))
        if len(self._sums) > self._limit:
            self._sums, self._ends = [torch.stack(self._sums).sum(dim=0)], [torch.stack(self._ends).amin(dim=0)]

    def read(self) -> dict[str, Any]:
        """All counts since the last reading; zeros where no image was seen.

        Images are the user's, however many tiles or frames the tower sees of each.
        `equivalent_tokens` is the mean over images of the visual tokens averaged over layers, `equivalent_min` and
        `equivalent_max` its extremes over sequences, `layer_tokens` the list of the means over images of each layer.
        """
        if not self._sums:
            return dict.fromkeys((*NAMES, *EQUIVALENT), 0.0) | {"layer_tokens": []}
        images, kept, padding, places, tiles, full, *layers = torch.stack(self._sums).sum(dim=0).tolist()
        ends = dict(zip((*LEAST, *MOST), torch.stack(self._ends).amin(dim=0).tolist(), strict=True))
        self._sums, self._ends = [], []
        layer_tokens = [tokens / images for tokens in layers]
        return {
            "images": images,
            "tiles": tiles,
            "full_mean": full / images,
            "kept_mean": kept / images,
            "kept_per_tile": kept / tiles,
            "kept_min": ends["kept_min"],
            "kept_max": -ends["kept_max"],
            "padding_share": padding / places,
            "equivalent_tokens": sum(layer_tokens) / len(layer_tokens),
            "equivalent_min": ends["equivalent_min"],
            "equivalent_max": -ends["equivalent_max"],
            "layer_tokens": layer_tokens,
        }
