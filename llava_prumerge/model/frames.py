"""The part of a processor for videos where torchvision is missing: frames through Pillow, with the sizes that transformers' own has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, CLIPImageProcessorPil
from transformers.video_utils import VideoMetadata

from llava_prumerge.ground.errors import InputError

PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_sample_frames": False,
}
"""CLIP's, and the same in most families' settings; frames are sampled by whoever reads the video (`data.videos`)."""
_OF_PIXELS = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
_DO = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


class FrameProcessor:
    """Stands for a processor's part for videos, and keeps its settings.

    Args:
        settings: as they lie in the processor's files.
        own: whether they are of videos, and not those of images, which stand in for them.
        defaults: those of the family's stock class; None: videos are not read here.
    """

    _auto_class = None  # asked for by transformers when a processor is saved

    def __init__(self, settings: dict[str, Any], own: bool, defaults: Mapping[str, Any] | None = None) -> None:
        self.settings, self.own, self.defaults = settings, settings if own else {}, defaults

    def __getattr__(self, name: str) -> Any:
        """A setting, None where it is not set: stock processors ask for some of them whenever they write text."""
        if name.startswith("_"):
            raise AttributeError(name)
        values = self.__dict__
        found = values.get("settings", {}).get(name)
        return (values.get("defaults") or {}).get(name) if found is None else found

    def __call__(self, videos: Any, video_metadata: Any = None, return_tensors: str | None = None, **_: Any) -> Any:
        """Videos, each a list of frames or an array [T, H, W, 3].

        Returns:
            `pixel_values_videos` [videos, T, 3, h, w], or packed patches with `video_grid_thw` [videos, 3].

        Raises:
            InputError: the family takes none.
        """
        if self.defaults is None:
            raise InputError("videos of this model need torchvision: pip install torchvision")
        each = [videos] if not isinstance(videos[0], list | tuple) and np.ndim(videos[0]) == 3 else videos
        made = [self._frames([np.asarray(frame) for frame in video]) for video in each]
        data: dict[str, Any] = {"video_metadata": _metadata(video_metadata, each)}
        if self.temporal_patch_size is None:
            return BatchFeature(data | {"pixel_values_videos": torch.stack(made)})
        packed = [self._packed(frames) for frames in made]
        grids = torch.tensor([grid for _, grid in packed])
        return BatchFeature(
            data | {"pixel_values_videos": torch.cat([one for one, _ in packed]), "video_grid_thw": grids}
        )

    def _frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        """[T, 3, h, w]"""
        given = {name: getattr(self, name) for name in _OF_PIXELS if getattr(self, name) is not None}
        given |= {name: bool(getattr(self, name)) for name in _DO}
        if self.temporal_patch_size is not None:
            height, width = self._native_size(len(frames), *frames[0].shape[:2])
            given |= {"size": {"height": height, "width": width}}
        return CLIPImageProcessorPil(**given)(list(frames), return_tensors="pt")["pixel_values"]

    def _native_size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """Of frames that keep their shape: with bounds for each, or for all together where the settings say so."""
        if self.cap_pixels_per_frame:
            raise InputError("cap_pixels_per_frame of a video processor needs torchvision: pip install torchvision")
        least = self.settings.get("min_pixels") or self.size["shortest_edge"]
        most = self.settings.get("max_pixels") or self.size["longest_edge"]
        side = self.patch_size * self.merge_size
        if not self.bounds_whole_videos:
            return bounded_size(height, width, side, least, most)
        enlarged = max(side / height, side / width, 1.0)
        height, width = int(height * enlarged), int(width * enlarged)
        return bounded_size(height, width, side, least, most, count, self.temporal_patch_size)

    def _packed(self, frames: Tensor) -> tuple[Tensor, list[int]]:
        """Frames [T, 3, h, w] as patches of several frames, unit by unit. -> [S, channels x frames x p x p], grid"""
        pace, patch, side = self.temporal_patch_size, self.patch_size, self.merge_size
        frames = torch.cat([frames, frames[-1:].expand(-len(frames) % pace, -1, -1, -1)])
        times, rows, columns = len(frames) // pace, frames.shape[2] // patch, frames.shape[3] // patch
        parts = frames.view(times, pace, 3, rows // side, side, patch, columns // side, side, patch)
        parts = parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return parts.reshape(times * rows * columns, -1), [times, rows, columns]


def _metadata(told: Any, videos: Sequence[Any]) -> list[VideoMetadata]:
    """What stock processors read times from; where nobody says, each frame is there and nothing is known of times."""
    if told is None:
        return [VideoMetadata(total_num_frames=len(one), frames_indices=list(range(len(one)))) for one in videos]
    each = [told] if isinstance(told, dict | VideoMetadata) else told
    return [one if isinstance(one, VideoMetadata) else VideoMetadata(**one) for one in each]


def bounded_size(
    height: int, width: int, side: int, least: int, most: int, count: int = 1, pace: int = 1
) -> tuple[int, int]:
    """Height and width in pixels, multiples of `side`, near to what is given while so many frames lie within the bounds.

    As the processors of Qwen2-VL (bounds of a frame) and Qwen3-VL (of all frames, which are taken `pace` at a time).

    Raises:
        InputError: the frame is more than 200 times as long as it is wide, or the other way round.
    """
    if max(height, width) > 200 * min(height, width):
        raise InputError(f"frames of {width} x {height} pixels are too narrow; one side may be 200 times the other")
    nearest = [round(length / side) * side for length in (height, width)]
    volume = round(count / pace) * pace * nearest[0] * nearest[1]
    if volume > most:
        shrunk = math.sqrt(count * height * width / most)
        nearest = [max(side, math.floor(length / shrunk / side) * side) for length in (height, width)]
    elif volume < least:
        grown = math.sqrt(least / (count * height * width))
        nearest = [math.ceil(length * grown / side) * side for length in (height, width)]
    return nearest[0], nearest[1]
