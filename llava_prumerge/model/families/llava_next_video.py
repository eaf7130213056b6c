"""LLaVA-NeXT-Video: images as LLaVA-NeXT's; the frames of a video are pooled to fewer tokens each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llava_prumerge.model.families import Family
from llava_prumerge.model.frames import PIXELS
from llava_prumerge.model.joint_frames import reduced_jointly
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.tiled import TiledHost, frames_places, pooled, tower_refusal


class LlavaNextVideoHost(TiledHost):
    """Each frame is a tile."""

    old_stock_packs_videos = False
    joins_frames = True

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of images. [videos, frames, 3, h, w]"""
        if self.reducer is None:
            output = super().get_video_features(
                pixel_values_videos,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                **kwargs,
            )
            return self.tell_frames(output, pixel_values_videos.shape[1])
        videos, frames = pixel_values_videos.shape[:2]
        pixels = pixel_values_videos.flatten(0, 1)
        tiles = pooled(self.encode_tiles(pixels, vision_feature_layer), self.vision_resampler)
        places = frames_places(videos, frames, tiles.features.shape[1])

        def reduce(tiles: Tiles, places: Places) -> Any:
            return self.reduce([tiles], places, self.project, lambda _: pixels, modality="video")

        return reduced_jointly(reduce, tiles, places, frames) if self.reducer.joint else reduce(tiles, places)


FAMILY = Family(
    host=LlavaNextVideoHost,
    refusal=tower_refusal,
    videos=PIXELS
    | {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
)
