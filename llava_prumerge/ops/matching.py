"""Bipartite soft matching: rounds in which the most similar pairs of tokens become one, down to an exact number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def merge_schedule(tokens: int, target: int, rounds: int) -> list[int]:
    """How many tokens each round merges away: as even as can be over `rounds`, never more than half of what is left.

    Where halving makes the wanted number of rounds too few, more follow, at most log2(tokens / target) in all.
    """
    merges: list[int] = []
    while tokens > target:
        even = -(-(tokens - target) // max(rounds - len(merges), 1))
        merges.append(min(even, tokens // 2))
        tokens -= merges[-1]
    return merges


def bipartite_merge(keys: Tensor, schedule: list[int], protected: bool = False) -> tuple[Tensor, Tensor]:
    """Merge tokens by the similarity of their keys (ToMe, Bolya et al., ICLR 2023, Sec. 3.1 and Appendix D).

    In each round the tokens are put alternately into A and B, each of A is linked to the most similar of B, and the
    strongest links merge A's token into B's. The next round goes over what is left of A, then B, as the released code
    does: A's rest by falling similarity, or in its order where a class token is protected. What was merged goes on
    with the mean key of all its patches.

    Args:
        keys: [N, S, C].
        schedule: how many tokens each round merges away, see `merge_schedule`.
        protected: the first token is the class token, which neither leaves nor is merged into; it is not given back.

    Returns:
        Mixing matrix [N, K, P] of each token's mean over its patches (size-weighted means of means are that), and the
        raster index [N, K] of the patch that everything was merged into, in the released order.
    """
    images, tokens = keys.shape[:2]
    numbers = torch.arange(tokens, device=keys.device)
    owner = index = numbers.expand(images, -1)  # [N, S] the place of what each token has become part of; [N, n]
    for count in schedule:
        unit = F.normalize(_averages(owner, index.shape[1]) @ keys.float(), dim=-1)  # [N, n, C]
        similar = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # [N, a, b]
        if protected:
            similar[:, 0] = -torch.inf
        strength, partner = similar.max(dim=2)  # [N, a]
        by_strength = strength.argsort(dim=1, descending=True, stable=True)
        leaves, stays = by_strength[:, :count], by_strength[:, count:]
        if protected:
            stays = stays.sort(dim=1).values
        left = stays.shape[1]
        into_a = torch.zeros_like(strength, dtype=torch.long)
        into_a = into_a.scatter(1, stays, numbers[:left].expand(images, -1))
        into_a = into_a.scatter(1, leaves, left + partner.gather(1, leaves))
        into = torch.zeros_like(index)
        into[:, ::2] = into_a
        into[:, 1::2] = left + numbers[: similar.shape[2]]
        index = torch.cat([index[:, ::2].gather(1, stays), index[:, 1::2]], dim=1)
        owner = into.gather(1, owner)
    mixing = _averages(owner, index.shape[1])
    return (mixing[:, 1:, 1:], index[:, 1:] - 1) if protected else (mixing, index)


def _averages(owner: Tensor, count: int) -> Tensor:
    """Matrix that averages the tokens of each place. [N, S] -> [N, n, S]"""
    parts = (owner[:, None] == torch.arange(count, device=owner.device)[:, None]).float()
    return parts / parts.sum(dim=2, keepdim=True)
