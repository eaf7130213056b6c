"""Top class attention: selection without merging.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Sec. 3.2 and the "AITS" row of Table 5. The authors published no switch for
it; it is what their released selection leaves when nothing is merged and no token for the dropped ones is added.
"""

from __future__ import annotations

from typing import Any

from llava_prumerge.methods.base import Reduced, ReductionError, VisionReducer, VisionTokens, register
from llava_prumerge.ops.merge import select
from llava_prumerge.ops.select import pack, raster_priority, top_mask

ORDERS = ("attention", "raster")


@register("cls_topk")
class ClsTopK(VisionReducer):
    """Keep the patches that the class token attends to most.

    Args:
        order: "attention" (falling, as PruMerge) or "raster".
        Others: see `VisionReducer`; without a budget the outliers stay, at least one patch.
    """

    def __init__(self, order: str = "attention", **settings: Any) -> None:
        super().__init__(**settings)
        if order not in ORDERS:
            raise ReductionError(f"{self.name}: order {order!r} is not one of {', '.join(ORDERS)}")
        self.order = order

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        scores = image.attention(self.per_head)
        counts = self.counts(image)
        size = self.width(image, counts)
        keep = top_mask(scores, counts)
        index, valid = pack(keep, scores if self.order == "attention" else raster_priority(keep), size)
        return select(image.features, index), valid, index.masked_fill(~valid, -1)
