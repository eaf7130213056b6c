"""How important is each patch: attention received from the class token, and the outlier rule on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def received_attention(queries: Tensor, keys: Tensor, heads: int = 1) -> Tensor:
    """Attention that each key receives, averaged over the query rows and the heads, in float32.

    Args:
        queries: [N, R, C] query projections of the rows that look (one row: the class token).
        keys: [N, S, C] key projections of all tokens.
        heads: heads the width is split into. 1 treats the whole width as one head, as the released PruMerge does.

    Returns:
        [N, S]; each image's row sums to 1.
    """
    images, rows, width = queries.shape
    if width % heads:
        raise ValueError(f"width {width} does not split into {heads} heads")
    queries = queries.float().view(images, rows, heads, width // heads).transpose(1, 2)  # [N, H, R, C/H]
    keys = keys.float().view(images, -1, heads, width // heads).transpose(1, 2)  # [N, H, S, C/H]
    logits = queries @ keys.transpose(2, 3) * (width // heads) ** -0.5  # [N, H, R, S]
    rows_of_heads = logits.softmax(dim=-1)
    return rows_of_heads[:, 0, 0] if heads == rows == 1 else rows_of_heads.mean(dim=(1, 2))


@dataclass
class BlockProjections:
    """Query and key projections of one block of a vision tower, and their attention, computed when first asked for.

    Attributes:
        queries: [N, R, C] of the rows that look.
        keys: [N, S, C] of all tokens, the patches last.
        heads: attention heads of the block.
        patches: P.
        attention: what was computed so far, by number of heads.
    """

    queries: Tensor
    keys: Tensor
    heads: int
    patches: int
    attention: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def patch_keys(self) -> Tensor:
        """[N, P, C]"""
        return self.keys[:, -self.patches :]

    @property
    def mean_keys(self) -> Tensor:
        """Keys of all tokens averaged over heads, float32: the metric of ToMe and VisionZip. [N, S, C/H]"""
        return self.keys.float().unflatten(2, (self.heads, -1)).mean(dim=2)

    @property
    def head_keys(self) -> Tensor:
        """`mean_keys` of the patches alone. [N, P, C/H]"""
        return self.patch_keys.float().unflatten(2, (self.heads, -1)).mean(dim=2)

    def received(self, heads: int) -> Tensor:
        """Attention each patch receives, as if the block had that many heads. [N, P]"""
        if heads not in self.attention:
            self.attention[heads] = received_attention(self.queries, self.keys, heads)[:, -self.patches :]
        return self.attention[heads]


def outlier_mask(scores: Tensor, factor: float = 1.5) -> Tensor:
    """Upper outliers of each row by Tukey's fence: scores above Q3 + factor * (Q3 - Q1). [N, P] -> [N, P] bool

    Quartiles are interpolated linearly, as `numpy.percentile` does. Written out because `Tensor.quantile` checks its argument on the host.
    """
    scores = scores.float()
    ordered = scores.sort(dim=1).values
    first, third = _interpolated(ordered, 0.25), _interpolated(ordered, 0.75)
    fence = third + factor * (third - first)
    return scores > fence[:, None]


def outlier_count(scores: Tensor, factor: float = 1.5) -> Tensor:
    """Number of outliers of each row, see `outlier_mask`. [N, P] -> [N]"""
    return outlier_mask(scores, factor).sum(dim=1)


def _interpolated(ordered: Tensor, share: float) -> Tensor:
    """The value below which `share` of a sorted row lies. [N, P] -> [N]"""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)], place - below)
