"""What a family tells of the features it returns: the places they stand for, and the text they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


@dataclass(frozen=True)
class VisualTokens:
    """What a family tells of features that it returns.

    Attributes:
        lengths: placeholders of each image.
        origin: [P] the unit within its tile that each place stands for, -1 for none; all images' places in a row.
        source: [P] the place, from the image's first, that a token stands for, -1 for an empty one; None: all are there.
        kept: [N] tokens of each image.
        tiles: parts that the tower saw.
    """

    lengths: list[int]
    origin: Tensor
    source: Tensor | None
    kept: Tensor
    tiles: int

    def select(self, index: Sequence[int]) -> VisualTokens:
        """The same for images taken from these, some of them several times."""

        def take(part: Tensor) -> Tensor:
            of_images = part.split(self.lengths)
            return torch.cat([of_images[at] for at in index])

        origin, source = take(self.origin), None if self.source is None else take(self.source)
        tiles = round(self.tiles * len(index) / len(self.lengths))
        return VisualTokens([self.lengths[at] for at in index], origin, source, self.kept[list(index)], tiles)


@dataclass
class ReducedFeatures(BaseModelOutputWithPooling):
    """The stock output of `get_image_features`, and what its features are; a field, so that wrappers carry it along."""

    deepstack_features: list[list[Tensor]] | None = None
    visual_tokens: VisualTokens | None = None


@dataclass(frozen=True)
class Asked:
    """The text that images are about, for methods that read the prompt: [B, L] each."""

    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor | None
