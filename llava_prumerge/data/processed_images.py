"""Images of models that see them at sizes of their own: pixels, and what stands for each in the text, by the model's processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_prumerge.data.videos import Video
from llava_prumerge.ground.errors import InputError

_OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "labels", "text_replacement_offsets")
Beside = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
"""Processor, ids [L] and labels [L] -> what a model takes beside the ids in training, [L] each."""
_FORMER_NAMES = {"pixel_values_images": "pixel_values"}
_TYPICAL = (640, 480)


class ProcessedImages:
    """Calls a processor with images alone; the text around them is masked by `conversation`, and comes out the same.

    Args:
        processor: a model's own.
        beside: the family's own way to make what its model takes beside ids; None: the processor's.

    Raises:
        InputError: it takes no images.
    """

    def __init__(self, processor: Any, beside: Beside | None = None) -> None:
        if getattr(processor, "image_token", None) is None or not hasattr(processor, "image_processor"):
            raise InputError(f"a {type(processor).__name__} takes no images")
        self.processor, self._own_beside = processor, beside

    def __call__(
        self, images: Sequence[Image.Image], videos: Sequence[Video] = (), order: Sequence[str] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Images of one sample, in RGB, and videos.

        Args:
            order: "image" or "video" for each of them as the text shows them; None: images first.

        Returns:
            What the model takes of them, end to end; and by marker the texts that stand for each.
        """
        markers = {"image": self.processor.image_token, "video": getattr(self.processor, "video_token", None)}
        order = ["image"] * len(images) + ["video"] * len(videos) if order is None else order
        given: dict[str, Any] = {"images": [list(images)]} if images else {}
        if videos:
            given |= {"videos": [[np.asarray(frame) for frame in video.frames] for video in videos]}
            given |= {"video_metadata": [video.metadata for video in videos], "do_sample_frames": False}
        made = self.processor(
            text=["".join(str(markers[kind]) for kind in order)],
            return_tensors="pt",
            return_text_replacement_offsets=True,
            **given,
        )
        texts: dict[str, list[str]] = {str(marker): [] for marker in markers.values() if marker is not None}
        for one in made["text_replacement_offsets"][0]:
            texts[str(markers[one["type"]])].append(str(one["replacement"]))
        tensors = {_FORMER_NAMES.get(key, key): torch.as_tensor(made[key]) for key in made if key not in _OF_TEXT}
        return tensors, texts

    def beside(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the model takes beside ids [L], such as which of them are images: [L] each."""
        if self._own_beside is not None:
            return self._own_beside(self.processor, ids, labels)
        if not getattr(self.processor, "return_mm_token_type_ids", False):
            return {}
        return {"mm_token_type_ids": torch.tensor(self.processor.create_mm_token_type_ids([ids.tolist()])[0])}

    @cached_property
    def typical_places(self) -> int:
        """Tokens of an image of 640 x 480 pixels."""
        _, texts = self([Image.new("RGB", _TYPICAL)])
        return self._count(texts[self.processor.image_token][0])

    def typical_video_places(self, frames: int) -> int:
        """Tokens of a video of so many frames of 640 x 480 pixels."""
        video = Video([Image.new("RGB", _TYPICAL)] * frames, list(range(frames)), frames)
        _, texts = self([], [video])
        return self._count(texts[self.processor.video_token][0])

    def _count(self, text: str) -> int:
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
