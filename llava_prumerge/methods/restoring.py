"""RESTORE's anchors, on top of any vision reducer: part of the budget gathers what the reducer drops.

Restoring what pruning takes away (RESTORE; no code was published, rule and constants as docs/methods.md quotes them): half of the
budget goes to what the base method keeps, half to anchors, the dropped tokens of highest R_i (1 - max C_ij over the j with
R_j > R_i), where C is the cosine and R_i its sum over j; every other token is merged into the anchor most like it, and the
merged token stands in the middle of its group. Our reading, where that leaves something open: C and R are over the
dropped tokens, the token of largest R has the factor 1, a merged token is the mean of its group, its position is that of the
group's median patch (the lower one of two), and tokens stand in the order of their patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ops.select import group_weights, mix, nearest_centres, pack, raster_priority, select, top_mask

Reduced = tuple[Tensor, Tensor, Tensor]
"""features [N, K, C or D], valid [N, K] bool, origin [N, K] (raster index each token stands for, -1 = none)."""


def with_anchors(features: Tensor, reduced: Reduced, budget: int) -> tuple[Reduced, Tensor]:
    """Fill a reducer's answer up to a budget.

    Args:
        features: [N, P, C] that the reducer was given.
        reduced: its answer, of fewer tokens.
        budget: K, which every image then has, P where that is less.

    Returns:
        Features [N, K, C], valid, origin [N, K], and sizes [N, K]: patches that each token stands for.
    """
    kept, valid, origin = reduced
    patches = features.shape[1]
    width = min(budget, patches)
    held = F.one_hot(origin.clamp(min=0), patches) * (valid & (origin >= 0))[..., None]  # [N, K', P]
    rest = held.sum(dim=1) == 0  # [N, P]
    wanted = torch.minimum(width - valid.sum(dim=1), rest.sum(dim=1))  # [N]
    chosen = rest & top_mask(prominence(features, rest).masked_fill(~rest, -torch.inf), wanted)
    index, real = pack(chosen, raster_priority(chosen), width)
    gathered = nearest_centres(features, index, rest & ~chosen, real)  # [N, K, P]
    members = gathered + F.one_hot(index, patches) * real[..., None]
    sizes = members.sum(dim=2)  # [N, K]
    below = members.cumsum(dim=2) < ((sizes + 1) // 2)[..., None]
    middle = below.sum(dim=2).masked_fill(~real, -1)
    parts = (
        torch.cat([kept, mix(group_weights(gathered, index), features)], dim=1),
        torch.cat([valid, real], dim=1),
        torch.cat([origin, middle], dim=1),
        torch.cat([valid.float(), sizes], dim=1),
    )
    last = torch.where(parts[2] < 0, patches, parts[2]).masked_fill(~parts[1], patches + 1)
    order = last.argsort(dim=1, stable=True)[:, :width]
    made, there, at, counts = (select(parts[0], order), *(part.gather(1, order) for part in parts[1:]))
    return (made, there, at.masked_fill(~there, -1)), counts.clamp(min=1.0)


def prominence(features: Tensor, among: Tensor) -> Tensor:
    """How fit tokens are as anchors: like many others, and unlike those that are like more. [N, P, C], [N, P] -> [N, P]"""
    unit = F.normalize(features.float(), dim=-1)
    pairs = among[:, None] & among[..., None]
    likeness = (unit @ unit.transpose(1, 2)).masked_fill(~pairs, 0.0)  # [N, P, P]
    total = likeness.sum(dim=2)  # [N, P]
    index = torch.arange(total.shape[1], device=total.device)
    other, own = total[:, None], total[..., None]
    denser = pairs & ((other > own) | ((other == own) & (index < index[:, None])))
    nearest = likeness.masked_fill(~denser, -torch.inf).amax(dim=2)
    return total * (1 - torch.where(denser.any(dim=2), nearest, 0.0))
