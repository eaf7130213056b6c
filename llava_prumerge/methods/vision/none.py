"""No reduction: every patch reaches the language model. The reference row of each table."""

from __future__ import annotations

import torch

from llava_prumerge.methods.base import Reduced, VisionReducer, VisionTokens
from llava_prumerge.methods.cost import TokensLeft
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import Settings


@register("none")
class KeepAll(VisionReducer):
    """Keep all P tokens as they are."""

    paper = "LLaVA-1.5, Liu et al., CVPR 2024 (arXiv 2310.03744)"
    settings: Settings

    def tokens_left(self, patches: int) -> TokensLeft:
        """All."""
        return TokensLeft(patches, "every patch stays")

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, P, C] unchanged."""
        images, patches = image.features.shape[:2]
        self.width(image, torch.full((images,), patches, device=image.features.device))
        origin = torch.arange(patches, device=image.features.device).expand(images, patches)
        return image.features, torch.ones_like(origin, dtype=torch.bool), origin
