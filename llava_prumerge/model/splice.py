"""Putting an image's kept tokens into the text: at the last of its placeholders, with the gaps closed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ops.layout import TokenLayout
from llava_prumerge.ops.merge import select


@dataclass(frozen=True)
class ReducedImages:
    """Visual tokens in the language model's space.

    Attributes:
        features: [N, K, D].
        valid: [N, K] bool.
        origin: [N, K] raster index of the patch, -1 for none.
        whole: no reducer acted: all patches are there, which spares looking for gaps.
    """

    features: Tensor
    valid: Tensor
    origin: Tensor
    whole: bool = False


def splice(
    embeddings: Tensor,
    layout: TokenLayout,
    images: ReducedImages,
    places: int,
    start: Tensor | int,
    positions: str = "contiguous",
) -> tuple[TokenLayout, Tensor]:
    """Put the images' tokens at their placeholders and close the gaps.

    An image's kept tokens take the last of its placeholders, the others are dropped: the last token before the text keeps the
    text's first word as its target.

    Args:
        embeddings: [B, L, D] of the text, with anything at the placeholders.
        layout: of these.
        images: N images in the order of their placeholders.
        places: placeholders of one image, one per patch of the full tower.
        start: position of the first token, [B, 1] or a number.
        positions: "contiguous" numbers what is kept anew; "original" gives each token its patch's place.

    Returns:
        The layout of what is left and its embeddings [B, L', D].

    Raises:
        ValueError: the number of placeholders is not that of the images' patches, or an image keeps more tokens than it has.
    """
    kept, count = images.valid.shape[1], int(layout.is_image.sum())
    if count != images.valid.shape[0] * places:
        raise ValueError(
            f"{count} image placeholders do not match {images.valid.shape[0]} images of {places} tokens each"
        )
    if kept > places:
        raise ValueError(f"an image keeps {kept} tokens but has {places} placeholders")
    order = images.valid.to(torch.uint8).argsort(dim=1, stable=True)  # [N, K], what is kept last
    front = places - kept
    valid = F.pad(images.valid.gather(1, order), (front, 0))  # [N, P]
    origin = F.pad(images.origin.gather(1, order), (front, 0), value=-1)
    features = F.pad(select(images.features, order), (0, 0, front, 0)).to(embeddings.dtype)  # [N, P, D]
    embeddings = embeddings.masked_scatter(layout.is_image[..., None], features)
    layout = replace(layout, origin=layout.origin.masked_scatter(layout.is_image, origin))
    if positions == "original":  # each token moves to its patch's place; what stands for no patch takes the last
        ahead = torch.arange(places, device=origin.device).expand_as(origin)
        shift = torch.where(origin < 0, places - 1, origin) - ahead
        moved = torch.zeros_like(layout.position_ids).masked_scatter(layout.is_image, shift)
        layout = replace(layout, position_ids=layout.position_ids + moved)
    if images.whole and kept == places:
        return layout, embeddings
    keep = layout.key_mask.masked_scatter(layout.is_image, valid)
    layout, embeddings = layout.compact(keep, embeddings)
    return (layout if positions == "original" else layout.renumbered(start)), embeddings
