"""Which patches a prompt asks for: similarities of prompt tokens and patches, and orders made of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ops.select import ranks_of


def centred(visual: Tensor, text: Tensor, mask: Tensor, centre: str) -> tuple[Tensor, Tensor]:
    """Subtract means in float32: "both" from each side its own, "visual" the patches' mean from both, "none" nothing.

    Patches of one image have a large common part, and so have word embeddings; the cosines of raw vectors see little
    else. Means are over one image, and over the real tokens of one prompt.

    Args:
        visual: [N, P, D].
        text: [N, T, D].
        mask: [N, T] bool, real prompt tokens.
        centre: "both", "visual" or "none".

    Returns:
        visual [N, P, D] and text [N, T, D], float32; what is not real is zero.
    """
    visual, text, real = visual.float(), text.float(), mask[..., None].float()
    if centre == "none":
        return visual, text * real
    mean = visual.mean(dim=1, keepdim=True)
    prompt_mean = (text * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return visual - mean, (text - (prompt_mean if centre == "both" else mean)) * real


def queries_of(mask: Tensor, before: int, after: int) -> Tensor:
    """Prompt tokens that ask: all but the first `before` and last `after` real ones, which belong to the template.

    A prompt that consists of nothing else asks as a whole. [N, T] bool -> [N, T] bool
    """
    place = mask.long().cumsum(dim=1)  # 1-based among the real ones
    inner = mask & (place > before) & (place <= place[:, -1:] - after)
    return torch.where(inner.any(dim=1, keepdim=True), inner, mask)


def prompt_similarity(visual: Tensor, text: Tensor) -> Tensor:
    """Cosines. [N, P, D], [N, T, D] -> [N, T, P]"""
    return F.normalize(text, dim=-1) @ F.normalize(visual, dim=-1).transpose(1, 2)


def union_order(similarity: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which patches join the union of what each prompt token retrieves, all lists growing at one pace.

    Args:
        similarity: [N, T, P].
        queries: [N, T] bool, prompt tokens that ask.

    Returns:
        depth [N, P], the length of the lists at which a patch joins (its best rank, from 0; P where nobody asks), and
        place [N, P], its place in the order; patches that join together are ordered by their highest similarity, then
        by raster.
    """
    patches = similarity.shape[2]
    depth = ranks_of(similarity).masked_fill(~queries[..., None], patches).amin(dim=1)  # [N, P]
    highest = similarity.masked_fill(~queries[..., None], -2.0).amax(dim=1)  # below any cosine
    return depth, ranks_of(-(depth * patches + ranks_of(highest)))


def contrast_weights(similarity: Tensor, queries: Tensor) -> Tensor:
    """How much each prompt token tells patches apart: its best match above its mean match, the most telling token at 1.

    A word that fits all patches alike, as function words do, comes out near 0; so do tokens that do not ask. [N, T, P],
    [N, T] -> [N, T]
    """
    contrast = (similarity.amax(dim=2) - similarity.mean(dim=2)) * queries
    return contrast / contrast.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def relevance(similarity: Tensor, weights: Tensor) -> Tensor:
    """The best weighted match of each patch or cluster with a prompt token, in [0, 1]. [N, T, P], [N, T] -> [N, P]"""
    return (weights[..., None] * (1 + similarity) / 2).amax(dim=1)


def mean_match(similarity: Tensor, queries: Tensor) -> Tensor:
    """Mean similarity of each patch to the prompt tokens that ask. [N, T, P], [N, T] bool -> [N, P]"""
    return (similarity * queries[..., None]).sum(dim=1) / queries.sum(dim=1, keepdim=True).clamp(min=1)


def against_clip(patches: Tensor, text: Tensor, mask: Tensor, unit: bool) -> Tensor:
    """How little each patch is like the texts in CLIP's joint space: the mean of the negated products.

    The patches of CLIP that show what a text names are the ones least like it there, as TRIM and CDPruner release it:
    only the class token is trained to be like its text.

    Args:
        patches: [N, P, E].
        text: [N, T, E].
        mask: [N, T] bool, which texts are real.
        unit: products are cosines.

    Returns:
        [N, P] float32.
    """
    patches, text = patches.float(), text.float()
    if unit:
        patches, text = F.normalize(patches, dim=-1), F.normalize(text, dim=-1)
    return -mean_match(text @ patches.transpose(1, 2), mask)
