"""Bipartite soft matching: rounds in which the most similar pairs of tokens become one, down to an exact number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ops.select import pack, raster_priority, top_mask


def merge_schedule(tokens: int, target: int, rounds: int) -> list[int]:
    """How many tokens each round merges away: as even as can be over `rounds`, never more than half of what is left.

    Where halving makes the wanted number of rounds too few, more follow, at most log2(tokens / target) in all.
    """
    merges = []
    while tokens > target:
        even = -(-(tokens - target) // max(rounds - len(merges), 1))
        merges.append(min(even, tokens // 2))
        tokens -= merges[-1]
    return merges


def bipartite_merge(keys: Tensor, schedule: list[int]) -> tuple[Tensor, Tensor]:
    """Merge tokens by the similarity of their keys (ToMe, Bolya et al., ICLR 2023, Sec. 3.1 and Appendix D).

    In each round the tokens are put alternately into A and B, each of A is linked to the most similar of B, and the
    strongest links merge A's token into B's. What was merged goes on with the mean key of all its patches.

    Args:
        keys: [N, P, C].
        schedule: how many tokens each round merges away, see `merge_schedule`.

    Returns:
        Mixing matrix [N, K, P] of each token's mean over its patches (size-weighted means of means are that), and the
        raster index [N, K] of the patch that everything was merged into, in raster order.
    """
    images, patches = keys.shape[:2]
    owner = torch.arange(patches, device=keys.device).expand(
        images, -1
    )  # [N, P] the token that each patch has become part of
    index = owner  # [N, n]
    for count in schedule:
        tokens = torch.arange(index.shape[1], device=keys.device).expand_as(index)  # [N, n]
        unit = F.normalize(_averages(owner, tokens) @ keys.float(), dim=-1)  # [N, n, C]
        strength, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)  # [N, n / 2]
        leaves = top_mask(strength, count)
        into = tokens.clone()
        into[:, ::2] = torch.where(leaves, 2 * partner + 1, into[:, ::2])
        stays = into == tokens
        order, _ = pack(stays, raster_priority(stays), index.shape[1] - count)  # [N, n - count]
        index = index.gather(1, order)
        renumbered = stays.long().cumsum(dim=1) - 1
        owner = renumbered.gather(1, into.gather(1, owner))
    return _averages(owner, torch.arange(index.shape[1], device=keys.device).expand_as(index)), index


def _averages(owner: Tensor, tokens: Tensor) -> Tensor:
    """Matrix that averages the patches of each token. [N, P], [N, n] -> [N, n, P]"""
    parts = (owner[:, None] == tokens[..., None]).float()
    return parts / parts.sum(dim=2, keepdim=True)
