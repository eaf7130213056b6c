"""How important is each patch: attention received from the class token, and the outlier rule on it."""

from __future__ import annotations

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
    return logits.softmax(dim=-1).mean(dim=(1, 2))


def outlier_count(scores: Tensor, factor: float = 1.5) -> Tensor:
    """Number of upper outliers of each row by Tukey's fence: scores above Q3 + factor * (Q3 - Q1). [N, P] -> [N]"""
    quartiles = scores.float().quantile(scores.new_tensor([0.25, 0.75], dtype=torch.float32), dim=1)
    fence = quartiles[1] + factor * (quartiles[1] - quartiles[0])
    return (scores > fence[:, None]).sum(dim=1)
