"""Top class attention: selection without merging.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), Sec. 3.2 and the "AITS" row of Table 5. The authors published no switch for
it; it is what their released selection leaves when nothing is merged and no token for the dropped ones is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.reducers import OutlierReducer, OutlierSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import setting
from llava_prumerge.ops.select import pack, raster_priority, select, top_mask


@dataclass(frozen=True, kw_only=True)
class ClsTopKSettings(OutlierSettings):
    """Without a budget the outliers stay, at least one patch."""

    order: Literal["attention", "raster"] = setting(
        "attention", "order of what is kept: falling class attention, or that of the raster", source="released PruMerge"
    )


@register("cls_topk")
class ClsTopK(OutlierReducer):
    """Keep the patches that the class token attends to most."""

    paper = "LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388), row AITS of Table 5"
    settings: ClsTopKSettings

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] unchanged."""
        scores = self.attention(image)
        counts = self.counts(image)
        size = self.width(image, counts)
        keep = top_mask(scores, counts)
        index, valid = pack(keep, scores if self.settings.order == "attention" else raster_priority(keep), size)
        return select(image.features, index), valid, index.masked_fill(~valid, -1)
