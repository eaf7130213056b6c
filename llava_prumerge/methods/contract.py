"""Checks of what a method gives back, by shapes and types alone: no value is read, so that they cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout

REDUCED = "(features [N, K, C], valid [N, K] bool, origin [N, K] int64) with 1 <= K <= P"
PRUNED = "[B, L] bool (False drops), a float [B, L] in (0, 1] (gates on keys, while training), `Merged` or None"


@dataclass(frozen=True)
class Merged:
    """What a decoder pruner leaves where some of its tokens stand for several: these take places of tokens that go.

    Attributes:
        keep: [B, L] bool, False drops.
        hidden: [B, L, D] what stands at each place now.
        merged: [B, L] bool, the places that stand for several tokens.
        order: [B, L] numbers by whose size what is kept is arranged.
    """

    keep: Tensor
    hidden: Tensor
    merged: Tensor
    order: Tensor

    def marked(self, layout: TokenLayout) -> TokenLayout:
        """The layout with its merged tokens, which stand for no single patch."""
        return replace(layout, origin=layout.origin.masked_fill(self.merged, -1))


def left_of(answer: Tensor | Merged | None, layout: TokenLayout) -> tuple[TokenLayout, Tensor]:
    """What a decoder pruner's answer makes of a layout, nothing dropped yet, and which places it leaves. -> and [B, L] bool"""
    if answer is None:
        return layout, layout.key_mask
    if isinstance(answer, Merged):
        return answer.marked(layout), answer.keep & layout.key_mask
    return layout, (answer > 0.5) & layout.key_mask


def check_reduced(method: str, features: Tensor, reduced: Any) -> None:
    """What a vision reducer gave back, against its contract.

    Args:
        method: for the message.
        features: [N, P, C] that it was given.
        reduced: what it made of them.

    Raises:
        ReductionError: it is something else; the message says what, and what was asked for.
    """
    images, patches, width = features.shape

    def refuse(found: str) -> ReductionError:
        given = f"N = {images}, P = {patches}, C = {width}, {_plain(features.dtype)}"
        return ReductionError(f"{method}: forward has to give {REDUCED}, for {given}; it gave {found}")

    if not isinstance(reduced, tuple) or len(reduced) != 3 or not all(isinstance(part, Tensor) for part in reduced):
        raise refuse(_described(reduced))
    kept, valid, origin = reduced
    fits = kept.dim() == 3 and kept.shape[0] == images and kept.shape[2] == width and kept.dtype == features.dtype
    fits = fits and 1 <= kept.shape[1] <= patches
    fits = fits and valid.shape == kept.shape[:2] and valid.dtype == torch.bool
    if not (fits and origin.shape == valid.shape and origin.dtype == torch.int64):
        raise refuse(_described(reduced))


def check_pruned(method: str, is_image: Tensor, kept: Any) -> None:
    """What a decoder pruner gave back for places [B, L], against its contract; see `check_reduced`."""
    if kept is None:
        return
    if isinstance(kept, Merged):
        parts = kept.keep, kept.merged, kept.order
        fits = all(part.shape == is_image.shape for part in parts) and kept.hidden.shape[:2] == is_image.shape
        if fits and kept.keep.dtype == kept.merged.dtype == torch.bool:
            return
    elif (
        isinstance(kept, Tensor)
        and kept.shape == is_image.shape
        and (kept.dtype == torch.bool or kept.is_floating_point())
    ):
        return
    batch, length = is_image.shape
    raise ReductionError(
        f"{method}: forward has to give {PRUNED}, for B = {batch}, L = {length}; it gave {_described(kept)}"
    )


def _described(given: Any) -> str:
    """Shapes and types of whatever it is."""
    if isinstance(given, Tensor):
        return f"a tensor {list(given.shape)} {_plain(given.dtype)}"
    if isinstance(given, Merged):
        return f"Merged of {', '.join(f'{name} {_described(part)}' for name, part in vars(given).items())}"
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}: {', '.join(_described(part) for part in given)}"
    return f"a {type(given).__name__}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
