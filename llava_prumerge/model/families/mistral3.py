"""Mistral 3: Pixtral's tower, images of any size; a learnt merger makes a token of each block of patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.model.families import Family
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.packed_tower import encode_packed
from llava_prumerge.model.vision_tower import depth_of


class Mistral3Host(Host):
    """Line breaks between the rows of an image are tokens of the text."""

    def blank(self) -> dict[str, dict[str, Any]]:
        """A tower of any size is told the size."""
        given = super().blank()
        pixels = given["image"]["pixel_values"]
        given["image"]["image_sizes"] = torch.tensor([pixels.shape[-2:]], device=pixels.device)
        return given

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock features, or what the reducer leaves of them. [N, 3, h, w], padded to the largest"""
        if self.reducer is None:
            return super().get_image_features(
                pixel_values, image_sizes, vision_feature_layer=vision_feature_layer, **kwargs
            )
        tower, side = self.vision_tower, self.config.spatial_merge_size
        layer: Any = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        sizes, depth = torch.as_tensor(image_sizes).tolist(), depth_of(tower, layer)
        grids = [(height // tower.patch_size, width // tower.patch_size) for height, width in sizes]
        packed = encode_packed(
            tower,
            lambda: tower(pixel_values, image_sizes=image_sizes, output_hidden_states=True, return_dict=True),
            lambda output: output.hidden_states[depth][0],
            [(rows // side, columns // side) for rows, columns in grids],
            depth,
            fold=side * side,
            patch_order=_by_units(grids, side).to(pixel_values.device),
        )
        pixels = packed.pixels(lambda at: pixel_values[at, :, : sizes[at][0], : sizes[at][1]])
        return self.reduce(packed.tiles, packed.places, self.project, pixels)

    def project(self, features: Tensor) -> Tensor:
        """[..., patches of a unit x C] -> [..., D]: the stock projector's steps, whose own way in takes whole images."""
        module, patches = self.multi_modal_projector, self.config.spatial_merge_size**2
        normed = module.norm(in_dtype_of(module, features).unflatten(-1, (patches, -1)))
        merged = module.patch_merger.merging_layer(normed.transpose(-1, -2).flatten(-2))  # channel by channel
        return module.linear_2(module.act(module.linear_1(merged)))

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`; sides are rounded as the processor does."""
        vision, side = self.config.vision_config, self.config.spatial_merge_size
        longest = (pixels.get("size") or {}).get("longest_edge", vision.image_size)
        ratio = max(height / longest, width / longest, 1.0)
        rows, columns = (math.ceil(int(part / ratio) / (vision.patch_size * side)) for part in (height, width))
        return 1, rows * columns * side * side, side * side, rows * columns, 0


def _by_units(grids: list[tuple[int, int]], side: int) -> Tensor:
    """Patches in the order of their units, row by row, and row by row in each. [S]"""
    found, begin = [], 0
    for rows, columns in grids:
        numbers = begin + torch.arange(rows * columns).view(rows, columns)
        whole = numbers[: rows // side * side, : columns // side * side]
        found.append(whole.unflatten(0, (-1, side)).unflatten(2, (-1, side)).transpose(1, 2).flatten())
        begin += rows * columns
    return torch.cat(found)


def _refusal(config: Any) -> str | None:
    return None if isinstance(config.vision_feature_layer, int) else "vision_feature_layer must be one layer"


FAMILY = Family(host=Mistral3Host, refusal=_refusal, needs=("torchvision", "torchvision"))
