"""Families that see images and videos at their own size: a packed tower, whose merger makes a token of several patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from llava_prumerge.model.frames import PIXELS
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.packed_tower import encode_packed

PACKED_FRAMES = PIXELS | {
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
"""Of Qwen2-VL's part for videos: frames keep their shape, and a patch is of two of them."""


def vision_mark(processor: Any) -> str:
    """What stands for an image in a prompt: its placeholder between the tokens that open and close it."""
    return f"<|vision_start|>{processor.image_token}<|vision_end|>"


class NativeHost(Host):
    """Positions have three parts and stay those of the patches; features for later layers follow the patches too."""

    tower_names = ("visual",)
    projector_names = ("visual.merger", "visual.deepstack_merger_list")

    @property
    def tower(self) -> Any:
        """See `Host`."""
        return self.visual

    @property
    def projector(self) -> Any:
        """See `Host`."""
        return self.visual.merger

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`; sides are rounded as the processor does."""
        side, patch = self.visual.spatial_merge_size, self.config.vision_config.patch_size
        size = pixels.get("size") or {}
        named = (("min_pixels", "shortest_edge", 56 * 56), ("max_pixels", "longest_edge", 14 * 14 * 4 * 1280))
        least, most = (pixels.get(old) or size.get(new) or default for old, new, default in named)
        sides = smart_resize(height, width, factor=side * patch, min_pixels=least, max_pixels=most)
        rows, columns = (part // patch for part in sides)
        return 1, rows * columns, side * side, rows * columns // side**2, 0

    def blank(self) -> dict[str, dict[str, Any]]:
        """One unit; of a video too."""
        vision, side = self.config.vision_config, self.visual.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(side * side, width, dtype=self.dtype, device=self.device)
        grid = torch.tensor([[1, side, side]], device=self.device)
        video = {"pixel_values_videos": pixels, "video_grid_thw": grid}
        return {"image": {"pixel_values": pixels, "image_grid_thw": grid}, "video": video}

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        """Stock features, or what the reducer leaves of them."""
        if self.reducer is None:
            return super().get_image_features(pixel_values, image_grid_thw, **kwargs)
        return self._native(pixel_values, image_grid_thw, "image")

    def get_video_features(
        self, pixel_values_videos: Tensor, video_grid_thw: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As of images; all frames of a video are one tile."""
        if self.reducer is None:
            return super().get_video_features(pixel_values_videos, video_grid_thw, **kwargs)
        return self._native(pixel_values_videos, video_grid_thw, "video")

    def picture(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """Patches [S, channels x frames x p x p] in the order of units, as an image; of frames that are one patch the first."""
        side, patch = self.visual.spatial_merge_size, self.config.vision_config.patch_size
        parts = pixels.view(*grid, side, side, 3, -1, patch, patch)[..., 0, :, :]
        rows, columns = grid[0] * side * patch, grid[1] * side * patch
        return parts.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows, columns)

    def unit_order(self, grid_thw: Tensor) -> Tensor | None:
        """Where each unit stands in the tower's sequence; None: as they come."""
        return None

    def _native(self, pixels: Tensor, grid_thw: Tensor, modality: str) -> Any:
        tower, side = self.visual, self.visual.spatial_merge_size
        sizes = grid_thw.tolist()
        packed = encode_packed(
            tower,
            lambda: tower(pixels.type(tower.dtype), grid_thw=grid_thw, return_dict=True),
            lambda output: output.last_hidden_state,
            [(frames * height // side, width // side) for frames, height, width in sizes],
            fold=side * side,
            order=self.unit_order(grid_thw),
        )

        def project(features: Tensor) -> Tensor:
            patches = features.reshape(-1, features.shape[-1] // side**2)
            return tower.merger(in_dtype_of(tower.merger, patches)).view(*features.shape[:-1], -1)

        parts = pixels.split([frames * height * width for frames, height, width in sizes])
        output = self.reduce(
            packed.tiles, packed.places, project, packed.pixels(lambda at: parts[at]), modality=modality
        )
        levels = getattr(packed.output, "deepstack_features", None)
        if levels:
            output.deepstack_features = [self._follow(level, output) for level in levels]
        return output

    def _follow(self, level: Tensor, output: Any) -> list[Tensor]:
        """Rows of a level [U, D] at the places of the units that tokens stand for; zero for those that stand for none."""
        visual, begin, found = output.visual_tokens, 0, []
        for origin in visual.origin.split(visual.lengths):
            rows = level[begin + origin.clamp(min=0)]
            found.append(rows * (origin >= 0)[:, None])
            begin += len(origin)
        return found
