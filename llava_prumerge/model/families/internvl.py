"""InternVL 2.5, 3 and 3.5 in the -hf layout: tiles, whose units are the blocks that the pixel shuffle makes of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from llava_prumerge.model.families import Family
from llava_prumerge.model.frames import PIXELS
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.placement import Places
from llava_prumerge.model.vision_tower import TowerSpec, encode, patch_grid, register_tower

register_tower("internvl_vision", TowerSpec("encoder.layer", "layernorm_before", "attention", lambda config: 1, True))

MOST_TILES = 12  # the processor's default


class InternVLHost(Host):
    """Each tile is an image to the stock code; which of them are one image is read off the prompt."""

    overview = "last"

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock features, or what the reducer leaves of them. [N, 3, h, w]"""
        if self.reducer is None:
            output = super().get_image_features(
                pixel_values=pixel_values,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                **kwargs,
            )
            return self.tell(output, lambda: self._places(*output.pooler_output.shape[:2]))
        layer = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        rows, columns = patch_grid(self.vision_tower, pixel_values)
        numbers = torch.arange(rows * columns).view(1, rows, columns, 1)
        units = self.pixel_shuffle(numbers, self.config.downsample_ratio).flatten(1, 2)[0]  # [U, 4]
        tiles = encode(
            self.vision_tower, pixel_values.to(self.dtype), layer, units.to(pixel_values.device), last=layer == -1
        )

        def project(features: Tensor) -> Tensor:
            return self.multi_modal_projector(in_dtype_of(self.multi_modal_projector, features))

        places = self._places(len(pixel_values), len(units))
        return self.reduce([tiles], places, project, lambda _: pixel_values, stacked=len(units))

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`; as many tiles as the processor makes, and a small copy of the whole where there are several."""
        (side, _), (patch, _) = self.config.vision_config.image_size, self.config.vision_config.patch_size
        columns, rows = get_optimal_tiled_canvas(
            (height, width), (side, side), pixels.get("min_patches", 1), pixels.get("max_patches", MOST_TILES)
        )
        tiles, patches = rows * columns + (rows * columns > 1), (side // patch) ** 2
        fold = round(1 / self.config.downsample_ratio) ** 2
        return tiles, patches, fold, tiles * patches // fold, 0

    def _places(self, tiles: int, units: int) -> Places:
        places = Places.whole(tiles, units, units)
        return replace(places, lengths=self.runs("image", tiles * units) or places.lengths)


def _refusal(config: Any) -> str | None:
    if config.vision_feature_select_strategy != "default":
        return "vision_feature_select_strategy must be 'default': the class token is no part of a square of patches"
    return None if isinstance(config.vision_feature_layer, int) else "vision_feature_layer must be one layer"


FAMILY = Family(host=InternVLHost, refusal=_refusal, videos=PIXELS | {"size": {"height": 384, "width": 384}})
