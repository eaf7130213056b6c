"""FasterVLM: the patches with the highest class attention stay, averaged over true heads, and nothing is merged.

[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster, Zhang et al. (arXiv
2412.01818 v1; later VisPruner, ICCV 2025). As in the authors' code (Theia-4869/FasterVLM), attention is that of the
block whose output becomes the features (`attentions[-2]`). That is what sets it apart from `cls_topk`, which looks at
the block after it, as the released PruMerge does: `block: next` is `cls_topk` with `per_head: true, order: raster`.
"""

from __future__ import annotations

from typing import Any

from llava_prumerge.methods.base import BLOCKS, Reduced, ShareReducer, VisionTokens, register
from llava_prumerge.ops.merge import pick
from llava_prumerge.ops.select import top_mask


@register("fastervlm")
class FasterVLM(ShareReducer):
    """Keep the patches the class token attends to most, in raster order.

    Args:
        keep: share of the patches (1/9: 64 of 576).
        block: whose attention: "own", the block that made the features (released), or "next", the one that would read
            them.
        Others: see `ShareReducer`.
    """

    def __init__(self, keep: float | str = "1/9", block: str = "own", **settings: Any) -> None:
        super().__init__(keep=keep, **settings)
        self.check(block in BLOCKS, "block", block, f"one of {', '.join(BLOCKS)}")
        self.block = block

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        scores = image.attention(per_head=True, own=self.block == "own")
        counts = self.counts(image)
        return pick(image.features, top_mask(scores, counts), self.width(image, counts))
