"""No reduction: every patch reaches the language model. The reference row of each table."""

from __future__ import annotations

import torch

from llava_prumerge.methods.base import Reduced, VisionReducer, VisionTokens, register


@register("none")
class KeepAll(VisionReducer):
    """Keep all P tokens as they are."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, P, C] unchanged."""
        images, patches = image.features.shape[:2]
        self.width(image, torch.full((images,), patches, device=image.features.device))
        origin = torch.arange(patches, device=image.features.device).expand(images, patches)
        return image.features, torch.ones_like(origin, dtype=torch.bool), origin
