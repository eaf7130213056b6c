"""A reducer with parameters, for tests: half of the units, by a learnt score that also scales them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from llava_prumerge.methods.base import Reduced, VisionReducer, VisionTokens
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import Settings, setting
from llava_prumerge.ops.select import select


@dataclass(frozen=True, kw_only=True)
class LearntSettings(Settings):
    width: int = setting(128, "channels of a unit")


@register("learnt")
class Learnt(VisionReducer):
    """See the file."""

    settings: LearntSettings

    def __init__(self, settings: LearntSettings) -> None:
        super().__init__(settings)
        self.score = nn.Linear(settings.width, settings.width)

    def forward(self, image: VisionTokens) -> Reduced:
        features = image.features + self.score(image.features)
        count = max(1, features.shape[1] // 2)
        index = features.norm(dim=-1).topk(count).indices.sort(dim=1).values
        return select(features, index), index >= 0, index
