"""What a family tells of its images to those who count operations, draw pictures, or say which tiles are one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


class Views:
    """Part of `model.host.Host`; a family overrides what is otherwise with it.

    Attributes:
        joins_frames: the frames of a video can be reduced together.
    """

    joins_frames = False

    config: Any
    device: Any
    dtype: Any
    vision_tower: Any
    multi_modal_projector: Any
    _asked: Any

    if TYPE_CHECKING:

        def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
            """The stock model's, which a host stands in front of."""

    @property
    def resizes(self) -> bool:
        """Whether images are brought to the size that a reducer asks for; most families' processors have cut them by then."""
        return False

    @property
    def tower(self) -> Any:
        """What sees images."""
        return self.vision_tower

    @property
    def projector(self) -> Any:
        """What makes its features tokens of the language model."""
        return self.multi_modal_projector

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """An image of this size in pixels: tiles, patches of each, patches of a unit, tokens, and those that are no units.

        `pixels` are the settings of the processor's part for images, as far as they are known.
        """
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return 1, patches, 1, patches, 0

    def picture(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """A tile's pixels, as the tower gets them, as an image [3, h, w] with normalised colours; None: they are none."""
        return pixels if pixels.dim() == 3 and len(pixels) == 3 else None

    def runs(self, modality: str, total: int) -> list[int] | None:
        """Placeholders of each run of them in the sequences asked about; None where they are not `total` in all.

        For families whose stock code knows tiles alone: what stands between two images tells them apart.
        """
        if self._asked is None:
            return None
        spots = self._asked.input_ids == getattr(self.config, f"{modality}_token_id")
        before = torch.nn.functional.pad(spots[:, :-1], (1, 0))
        begins = (spots & ~before)[spots]  # in the order of placeholders, whether a run begins
        if len(begins) != total:
            return None
        at = begins.nonzero()[:, 0].tolist()
        return [end - begin for begin, end in zip(at, [*at[1:], total], strict=True)]
