"""LLaVA-NeXT: a base tile, then the tiles of an image as one map, unpadded, with a line break after each row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llava_prumerge.model.families import Family
from llava_prumerge.model.tiled import TiledHost, tower_refusal


class LlavaNextHost(TiledHost):
    """See the file."""

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock features, or what the reducer leaves of them."""
        if self.reducer is None:
            output = super().get_image_features(
                pixel_values,
                image_sizes,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                **kwargs,
            )
            return self.tell_tiled(output, image_sizes, self.tile_counts(image_sizes))
        return self.reduce_tiled(pixel_values, image_sizes, self.tile_counts(image_sizes), vision_feature_layer)


FAMILY = Family(host=LlavaNextHost, refusal=tower_refusal)
