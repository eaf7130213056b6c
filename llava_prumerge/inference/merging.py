"""What went into each token that a vision reducer made: the weight of every patch in it, found for any method.

A reducer's features are sums of patch features, with weights that it takes from attention, keys or similarities. The
weight of a patch in a token is then the derivative of the token by the patch, which is the same in every channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens

TOLERANCE = 0.05
"""How far, of a token's length, the weighted sum may be from a token for its weights to count; half precision is near 0.01."""


def _own_copy(value: Any) -> Any:
    """Tensors that take part in a differentiated computation; those of inference mode may not."""
    if isinstance(value, tuple):
        return tuple(_own_copy(one) for one in value)
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copying(closure: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if closure is None:
        return None

    def copied(*args: Any, **given: Any) -> Any:
        with torch.no_grad():
            return _own_copy(closure(*args, **given))

    return copied


def merge_weights(reduce: Callable[[VisionTokens], Reduced], tokens: VisionTokens) -> tuple[Tensor | None, Reduced]:
    """The weight of each patch in each token that a reducer makes of images.

    Args:
        reduce: the reducer's `forward`; it runs once more.
        tokens: as the reducer gets them.

    Returns:
        [N, K, P] float32 on CPU, zero rows where nothing is valid or a token is made of no patch (a class token); None
        where tokens are no weighted sums of patches. And what the reducer gave, on CPU.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features = tokens.features.detach().clone().requires_grad_()
        given = replace(
            tokens,
            features=features,
            projections=_copying(tokens.projections),
            prompt=_copying(tokens.prompt),
            clip=_copying(tokens.clip),
            question=_copying(tokens.question),
            padding=_copying(tokens.padding),
            ids=_own_copy(tokens.ids),
            class_token=_own_copy(tokens.class_token),
            unprojected=_own_copy(tokens.unprojected),
            projected=_own_copy(tokens.projected),
            overview=_own_copy(tokens.overview),
            boxes=_own_copy(tokens.boxes),
            _blocks={},
        )
        made, valid, origin = reduce(given)
        held = made.detach()
        index = origin.clamp(min=0)
        same = features.detach().gather(1, index[..., None].expand(-1, -1, features.shape[2]))
        unchanged = (origin >= 0) & (held == same).all(dim=2)  # [N, K]
        weights = torch.zeros(*origin.shape, features.shape[1], device=features.device)
        weights.scatter_(2, index[..., None], unchanged[..., None].float())
        for number in ((valid & ~unchanged).any(dim=0)).nonzero()[:, 0].tolist() if made.requires_grad else ():
            (slope,) = torch.autograd.grad(made[:, number].float().sum(), features, retain_graph=True)  # [N, P, C]
            weights[:, number] = torch.where(
                unchanged[:, number, None], weights[:, number], slope.float().mean(dim=2)
            )  # fmt: skip
        weights = weights.masked_fill(~valid[..., None], 0.0)
        reduced = held.cpu(), valid.cpu(), origin.cpu()
        made_of_patches = valid & weights.any(dim=2)
        rest = (weights @ features.detach().float() - held.float()).norm(dim=2)
        far = rest > TOLERANCE * held.float().norm(dim=2).clamp(min=1e-12)
    return (None if bool((far & made_of_patches).any()) else weights.cpu()), reduced
