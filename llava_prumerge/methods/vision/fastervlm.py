"""FasterVLM: the patches with the highest class attention stay, averaged over true heads, and nothing is merged.

[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster, Zhang et al. (arXiv
2412.01818 v1; its repository now holds VisPruner, another method). The release takes a number of tokens, 144 where
nothing is said (75% less; 58 and 29 for 90% and 95%). As in the authors' code (Theia-4869/FasterVLM), attention is that of the
block whose output becomes the features (`attentions[-2]`). That is what sets it apart from `cls_topk`, which looks at
the block after it, as the released PruMerge does: `block: next` is `cls_topk` with `per_head: true, order: raster`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.select import pick, top_mask


@dataclass(frozen=True, kw_only=True)
class FasterVlmSettings(BlockSettings):
    """By default 144 of 576 tokens."""

    keep_ratio: Fraction = setting(
        "1/4", "share of the patches that stays, rounded up", fraction(), source="released code", formerly="keep"
    )


@register("fastervlm")
class FasterVLM(BlockReducer):
    """Keep the patches the class token attends to most, in raster order."""

    paper = "FasterVLM, Zhang et al. (arXiv 2412.01818 v1)"
    settings: FasterVlmSettings

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        scores = self.attention(image)
        counts = self.counts(image)
        return pick(image.features, top_mask(scores, counts), self.width(image, counts))
