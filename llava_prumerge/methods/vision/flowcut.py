"""FlowCut: patches leave inside the vision tower, after every second block, those through which least information flows.

FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models, Tong et al., NeurIPS 2025 (arXiv
2505.19536; code TungChintao/FlowCut a2ecd24). After a block has run, a patch's score is its share of the class token's
attention plus its share of a softmax over the class token's values times the patch's, times the 1-norm of its values; both
averaged over heads. Scores are halved and added to those of the block before. Where an even number of blocks is left before
the one that makes the features, round((N - K) / sqrt(left) (1 - (H / ln N)^2)) patches go, H the entropy of the attention;
before that block itself all but K. Departures: each image drops its own number, where the release takes the largest of a
batch; scores are float32; a tower of a single block is cut after it, by the class attention, and so are features whose tower
is not at hand. Served in towers with a class token whose blocks take a mask: CLIP, DINOv2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.image_tokens import TowerBlock
from llava_prumerge.methods.reducers import ShareReducer, ShareSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.select import pick, top_mask


@dataclass(frozen=True, kw_only=True)
class FlowCutSettings(ShareSettings):
    """K, as a share or as a budget."""

    keep_ratio: Fraction = setting(
        Fraction(1, 3), "share of the patches that is left, rounded up", fraction(), source="released code: 192 of 576"
    )


@register("flowcut")
class FlowCut(ShareReducer):
    """Keep the patches through which information flows, block after block."""

    paper = "FlowCut, Tong et al., NeurIPS 2025 (arXiv 2505.19536)"
    cuts = True
    settings: FlowCutSettings

    def cut(self, block: TowerBlock) -> tuple[Tensor | None, Tensor | None]:
        """-> which patches stay after a block [N, P'] bool, and their running scores [N, P']"""
        wanted = self.tokens_left(block.patches).tokens
        number = block.real.sum(dim=1)  # [N]
        if block.real.shape[1] <= wanted:
            return None, None
        attention, echo, norm = (part.masked_fill(~block.real, 0.0) for part in flow(block))
        share = attention / attention.sum(dim=1, keepdim=True)
        score = (share + echo / echo.sum(dim=1, keepdim=True)) * norm
        running = score if block.carried is None else 0.5 * block.carried + 0.5 * score
        if block.left % 2:
            return None, running
        drop = number - wanted
        if block.left:
            even = torch.special.entr(share).sum(dim=1) / number.clamp(min=2).float().log()
            drop = (drop / block.left**0.5 * (1 - even.square())).round().long()
        stay = torch.maximum(number - drop, torch.full_like(number, wanted)).clamp(max=number)
        return top_mask(running.masked_fill(~block.real, -torch.inf), stay), running

    def attention(self, image: VisionTokens) -> Tensor:
        """That of the block which made the features, 0 where the tower had dropped a patch. [N, P]"""
        found = image.attention(per_head=True, own=True)
        if image.left is None:
            return found
        rows, columns = image.grid
        return found.new_zeros(len(found), rows * columns).scatter(1, image.left, found)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged: what the tower was left with; or cut here, see the file."""
        rows, columns = image.grid
        features, wanted = image.features, self.tokens_left(rows * columns).tokens
        counts = torch.full((len(features),), min(wanted, features.shape[1]), device=features.device)
        keep = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if features.shape[1] > wanted:
            keep = top_mask(image.attention(per_head=True, own=True), counts)
        kept, valid, origin = pick(features, keep, self.width(image, counts))
        return kept, valid, origin if image.left is None else image.left.gather(1, origin)


def flow(block: TowerBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Of each patch the class token's attention, its share of a softmax over products of values, and the 1-norm. [N, P'] each"""
    heads = block.heads
    query, keys, values = (part.float().unflatten(2, (heads, -1)) for part in (block.queries, block.keys, block.values))
    gone = torch.cat([torch.zeros_like(block.real[:, :1]), ~block.real], dim=1)[:, None]  # [N, 1, S]

    def received(one: Tensor, all_of_them: Tensor) -> Tensor:
        logits = (one * all_of_them).sum(dim=3).transpose(1, 2).masked_fill(gone, -torch.inf)  # [N, H, S]
        return logits.softmax(dim=2).mean(dim=1)[:, 1:]

    attention = received(query * query.shape[3] ** -0.5, keys)
    return attention, received(values[:, :1], values), values[:, 1:].mean(dim=2).abs().sum(dim=2)
