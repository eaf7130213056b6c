"""Video-LLaVA: a tower for images and one for videos; each frame brings its class token along, which always stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.families import Family
from llava_prumerge.model.frames import PIXELS
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.joint_frames import reduced_jointly
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.tiled import tower_refusal
from llava_prumerge.model.towers.temporal_clip import plain_tower
from llava_prumerge.model.vision_tower import encode


class VideoLlavaHost(Host):
    """Frames are images to the stock code; ranks must touch both towers."""

    tower_names = ("image_tower", "video_tower")
    joins_frames = True

    def blank(self) -> dict[str, dict[str, Any]]:
        """An image, and a video of so many frames as the tower wants."""
        given = super().blank()
        frames = given["image"]["pixel_values"].expand(self.frames or 1, -1, -1, -1)
        return given | {"video": {"pixel_values_videos": frames[None]}}

    @property
    def frames(self) -> int | None:
        """T, where the tower attends over time; None: any number."""
        return getattr(self.config.vision_config, "num_frames", None)

    @property
    def tower(self) -> Any:
        """See `Host`: that of images."""
        return self.image_tower

    def project(self, features: Tensor) -> Tensor:
        """[N, K, C] -> [N, K, D]"""
        return self.multi_modal_projector(in_dtype_of(self.multi_modal_projector, features))

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock features, or what the reducer leaves of them. [N, 3, h, w]"""
        if self.reducer is None:
            return super().get_image_features(
                pixel_values=pixel_values,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                **kwargs,
            )
        return self._reduced_frames(self.image_tower, pixel_values, vision_feature_layer, "image", ahead=0)

    def get_video_features(
        self, pixel_values_videos: Tensor, vision_feature_layer: int | list[int] | None = None, **kwargs: Any
    ) -> Any:
        """As of images. [videos, frames, 3, h, w]"""
        videos, frames = pixel_values_videos.shape[:2]
        if self.frames not in (None, frames):
            raise ModelError(f"videos of this model have {self.frames} frames each, and these have {frames}")
        if self.reducer is None:
            given = dict(pixel_values_videos=pixel_values_videos, vision_feature_layer=vision_feature_layer)
            output = super().get_video_features(**given, **kwargs)
            return self.tell(output, lambda: _places(videos * frames, output.pooler_output.shape[1] - 1, 1, videos))
        pixels = pixel_values_videos.flatten(0, 1)
        return self._reduced_frames(self.video_tower, pixels, vision_feature_layer, "video", ahead=1, videos=videos)

    def _reduced_frames(
        self, tower: Any, pixels: Tensor, layer: int | None, modality: str, ahead: int, videos: int | None = None
    ) -> Any:
        tiles = encode(tower, pixels, self.config.vision_feature_layer if layer is None else layer)
        units = tiles.features.shape[1]
        places = _places(len(pixels), units, ahead, videos or len(pixels))
        special = self.project(tiles.prefix).flatten(0, 1) if ahead else None
        counts = ahead + units

        def reduce(tiles: Tiles, places: Places) -> Any:
            return self.reduce([tiles], places, self.project, lambda _: pixels, special, modality, stacked=counts)

        if videos and self.reducer.joint:
            return reduced_jointly(reduce, tiles, places, len(pixels) // videos)
        return reduce(tiles, places)


def _places(frames: int, units: int, ahead: int, images: int) -> Places:
    """Of frames with so many units, and further tokens before them; those of an image follow each other."""
    places = Places.whole(frames, units, units, ahead)
    return replace(places, lengths=[sum(places.lengths) // images] * images)


def _built(model: Any) -> None:
    """Both towers are built alike; that of images attends to no time."""
    plain_tower(model.model.image_tower)


def _remark(model: Any) -> str | None:
    """The port on the Hub holds one tower twice: 388 of 391 tensors are equal in it."""
    if model.model.frames is not None:
        return None
    images, videos = (tower.state_dict() for tower in (model.model.image_tower, model.model.video_tower))
    same = sum(torch.equal(value, videos[name]) for name, value in images.items())
    twice = f" ({same} of its {len(images)} tensors are those of the image tower)" if 2 * same > len(images) else ""
    return (
        f"its video tower has no attention over time{twice}, so that the paper's numbers cannot be expected of it; "
        "LanguageBind/Video-LLaVA-7B, converted, has it (docs/checkpoints.md)"
    )


FAMILY = Family(
    host=VideoLlavaHost,
    refusal=tower_refusal,
    built=_built,
    remark=_remark,
    since="5.18",
    videos=PIXELS
    | {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
)
