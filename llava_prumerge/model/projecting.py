"""Groups of tiles around a projector: its dtype, one call for all of them, and which tile shows a whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def together(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """One call of a function of rows for several tensors [N, K, C]: ranks must make the same calls, whatever images they have."""
    if len(parts) == 1:
        return [function(parts[0])]
    sizes = [part.shape[:2] for part in parts]
    whole = function(torch.cat([part.flatten(0, 1) for part in parts]))
    split = whole.split([rows * columns for rows, columns in sizes])
    return [part.unflatten(0, size) for part, size in zip(split, sizes, strict=True)]


def in_dtype_of(module: nn.Module, features: Tensor) -> Tensor:
    """Features in the dtype of a module's weights; quantised weights, which are integers, take whatever they are given."""
    weight = next(module.parameters())
    return features.to(weight.dtype) if weight.is_floating_point() else features


def overviews(owners: Tensor, where: str | None, features: Tensor) -> Tensor | None:
    """For each tile of a group the one that shows its whole image, see `VisionTokens.overview`.

    Args:
        owners: [N] the image each tile belongs to, rising, on CPU.
        where: the "first" tile of an image shows all of it, or the "last"; None: each is a frame of a video.
        features: of the group.

    Returns:
        [N] int64 beside the features; None where every tile is an image.
    """
    if where is None:
        return None
    last = where == "last"
    shows = torch.searchsorted(owners, owners, right=last) - int(last)
    return None if bool((shows == torch.arange(len(owners))).all()) else shows.to(features.device)
