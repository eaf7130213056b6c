"""What a method adds to attention logits: weights of keys (gates while a pruner trains, patches that a token stands for), and
RESTORE's calibration of distances.

    z_mn + log s_n                       s_n the weight of key n, as if it were s_n equal keys
    z_mn + log s_n + log(c - D(m - n))   D the mean cosine of the rotary angles between query m and key n

Eq. 3-8 of RESTORE as `docs/methods.md` quotes them; the last term is for visual keys, or for all. Everything is kept beside the
cached keys, stretch by stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.ops.layout import LEAST_WEIGHT, Calibration, TokenLayout


def gate_logits(weight: Tensor) -> Tensor:
    """What weights above 0 on keys add to attention logits."""
    return weight.clamp(min=LEAST_WEIGHT).log()


def nearness_logits(near: Tensor, calibration: Calibration, visual: Tensor) -> Tensor:
    """What calibration adds: log(c - D) on visual keys, or on all.

    Args:
        near: [B, R, L] D, at most 1.
        calibration: c, and whether keys of text count.
        visual: [B, L] bool.
    """
    added = (calibration.constant - near).log()
    return added if calibration.text else added.masked_fill(~visual[:, None], 0.0)


class KeyBias:
    """What is added to the logits of a stretch of layers.

    Args:
        layout: of the new tokens.
        calibration: of distances, or None.
        cache: of the keys, which keeps what belongs to them, or None.
        start: the stretch's first layer.
    """

    def __init__(self, layout: TokenLayout, calibration: Calibration | None, cache: Any, start: int) -> None:
        self.calibration, self.cache, self.start = calibration, cache, start
        weight = layout.key_weight
        if weight is None:
            weight = torch.ones_like(layout.position_ids, dtype=torch.float32)
        self.weight = self._carry("weight", weight, 1.0)  # [B, keys]
        self.visual = None if calibration is None else self._carry("visual", layout.is_image, 0.0)  # [B, keys]

    def _carry(self, name: str, new: Tensor, blank: float) -> Tensor:
        """Join what holds of new keys [B, L, ...] to what held of cached ones, `blank` where nothing did. -> [B, keys, ...]"""
        if self.cache is None:
            return new
        earlier = self.cache.before(self.start, self.cache.earlier_beside.get(name, {}))
        if earlier is None:
            known = self.cache.stretches[self.start].shape[1] - new.shape[1]
            earlier = new.new_full((len(new), known, *new.shape[2:]), blank)
        whole = torch.cat([earlier, new], dim=1)
        self.cache.beside.setdefault(name, {})[self.start] = whole
        return whole

    def added_to(self, mask: Tensor, dtype: torch.dtype, kind: str, places: Callable[[], Tensor]) -> Tensor:
        """An additive mask with what is added to the logits.

        Args:
            mask: [B, 1, L, keys], additive or bool.
            dtype: of an additive mask made of a bool one.
            kind: of the layer, whose rotary angles may be others than those of another kind.
            places: gives the new tokens' rotary places [B, L, R], see `LayerProjections.places`.
        """
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        added = gate_logits(self.weight)[:, None]  # [B, 1, keys]
        if self.calibration is not None and self.visual is not None:
            here = places()
            near = here @ self._carry(f"places of {kind}", here, 0.0).transpose(1, 2)  # [B, L, keys]
            added = added + nearness_logits(near, self.calibration, self.visual)
        return mask + added.to(mask.dtype)[:, None]
