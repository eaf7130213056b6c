"""Families that cut an image into tiles and lay their patches out as one map: the family's own packing, run on unit numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from llava_prumerge.methods.base import Earlier
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.vision_tower import encode

NEWLINE = -1.0  # what stands for a line break among the numbers of units


class TiledHost(Host):
    """A base tile first, then a map of tiles, cut to the image's shape, with a token for the end of each row."""

    def packing(self) -> dict[str, Any]:
        """What the family's `pack_image_features` takes beside features, sizes and the line break."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}

    def pack(self, features: list[Tensor], image_sizes: Tensor, newline: Tensor) -> list[Tensor]:
        """The family's own packing. Of each image [tiles, U, C] -> [P, C]"""
        packed, _ = self.pack_image_features(features, image_sizes, **self.packing(), image_newline=newline)
        return packed

    def project(self, features: Tensor) -> Tensor:
        """[N, K, C] -> [N, K, D]"""
        return self.multi_modal_projector(in_dtype_of(self.multi_modal_projector, features))

    def tile_counts(self, image_sizes: Tensor) -> list[int]:
        """Tiles of each image, the base one included."""
        size, shapes = self.config.vision_config.image_size, self.config.image_grid_pinpoints
        return [image_size_to_num_patches(one, shapes, size) for one in image_sizes]

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`."""
        (_, units, *_), sizes = super().cut(height, width, pixels), torch.tensor([[height, width]])
        (count,) = counts = self.tile_counts(sizes)
        places = self.image_places(units, sizes, counts)
        return count, units, 1, sum(places.lengths), len(places.special)

    def blank(self) -> dict[str, dict[str, Any]]:
        """An image of one tile's size, and one frame."""
        pixels = super().blank()["image"]["pixel_values"]
        sizes = torch.tensor([pixels.shape[-2:]], device=pixels.device)
        (count,) = self.tile_counts(sizes)
        image = {"pixel_values": pixels.expand(count, -1, -1, -1)[None], "image_sizes": sizes}
        return {"image": image, "video": {"pixel_values_videos": pixels[None]}}

    def encode_tiles(self, pixels: Tensor, layer: int | None) -> Tiles:
        """[N, 3, h, w] -> the tiles"""
        return encode(self.vision_tower, pixels, self.config.vision_feature_layer if layer is None else layer)

    def boxes(self, image_sizes: Tensor, counts: list[int]) -> Tensor:
        """What each tile shows of its image, see `VisionTokens`; the map of tiles is padded to its shape. [N, 4]"""
        side, found = self.config.vision_config.image_size, []
        for size, count in zip(image_sizes.tolist(), counts, strict=True):
            found.append(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
            if count == 1:
                continue
            shape = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, side)
            scale = min(parts * side / length for parts, length in zip(shape, size, strict=True))
            shown = [length * scale / side for length in size]  # sides of the image, in tiles
            begin = torch.tensor([(parts - inner) / 2 for parts, inner in zip(shape, shown, strict=True)])
            corners = torch.cartesian_prod(*(torch.arange(parts) for parts in shape)) - begin  # [tiles, 2]
            found.append(torch.cat([corners, corners + 1], dim=1) / torch.tensor([*shown, *shown]))
        return torch.cat(found).clamp(0, 1)

    def cut_counts(self, image_sizes: Tensor, batch_num_images: Tensor | None = None) -> list[int]:
        """Tiles of each image of a batch, which samples may bring so many of."""
        return self.tile_counts(image_sizes)

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock features, or what the reducer leaves of them. [images, tiles, 3, h, w]"""
        counts = self.cut_counts(image_sizes, kwargs.get("batch_num_images"))
        if self.reducer is None:
            output = super().get_image_features(
                pixel_values,
                image_sizes,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                **kwargs,
            )
            return self.tell_tiled(output, image_sizes, counts)
        return self.reduce_tiled(pixel_values, image_sizes, counts, vision_feature_layer)

    def reduce_tiled(self, pixel_values: Tensor, image_sizes: Tensor, counts: list[int], layer: int | None) -> Any:
        """Reduce tiles; kept tokens and line breaks stand in the order of the family's packing."""
        if pixel_values.dim() == 5:
            pixel_values = torch.cat([one[:count] for one, count in zip(pixel_values, counts, strict=True)])
        tiles = self.encode_tiles(pixel_values, layer)
        tiles = replace(tiles, boxes=self.boxes(image_sizes, counts).to(tiles.features.device))
        places = self.image_places(tiles.grid[0] * tiles.grid[1], image_sizes, counts)
        if len(places.units) > 1:
            return self.reduce_shrunk(tiles, pixel_values, places, image_sizes, counts)
        return self.reduce([tiles], places, self.project, lambda _: pixel_values, self.lines(places))

    def image_places(self, units: int, image_sizes: Tensor, counts: list[int]) -> Places:
        """Where the units of each image's tiles stand, that have so many each."""
        numbers = torch.arange(sum(counts) * units, dtype=torch.double).view(-1, units, 1)
        newline = torch.full((1,), NEWLINE, dtype=torch.double)
        held = [one[:, 0] for one in self.pack(list(numbers.split(counts)), image_sizes, newline)]
        if not all(bool((one == one.round()).all()) for one in held):
            return self.shrunk_places(units, image_sizes, counts)
        return Places.of_numbers([one.long() for one in held], [(sum(counts), units)])

    def tell_tiled(self, output: Any, image_sizes: Tensor, counts: list[int]) -> Any:
        """Stock features, and what they stand for."""
        units = (self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2
        return self.tell(output, lambda: self.image_places(units, image_sizes, counts))

    def tell_frames(self, output: Any, frames: int, newlines: int = 0) -> Any:
        """The same of videos [videos, P, D] whose frames are tiles."""
        videos, length = output.pooler_output.shape[:2]
        return self.tell(output, lambda: frames_places(videos, frames, (length - newlines) // frames, newlines))

    def shrunk_places(self, units: int, image_sizes: Tensor, counts: list[int]) -> Places:
        """For families that shrink large maps: those of a base tile and a map for each image."""
        raise ModelError("the family's packing mixes patches, and nothing says how")

    def reduce_shrunk(
        self, tiles: Tiles, pixels: Tensor, places: Places, image_sizes: Tensor, counts: list[int]
    ) -> Any:
        """For families that shrink large maps."""
        raise ModelError("the family's packing mixes patches, and nothing says how")

    def lines(self, places: Places) -> Tensor:
        """The line break's feature for each place that holds one. [M, D]"""
        return self.image_newline.expand(len(places.special), -1)


def pooled(tiles: Tiles, pool: Callable[[Tensor], Tensor]) -> Tiles:
    """Units pooled to fewer [N, U, C] -> [N, U', C], and queries and keys alike; a class token's row stays."""
    units, features = tiles.features.shape[1], pool(tiles.features)

    def each(states: Tensor) -> Tensor:
        ahead = states.shape[1] - units
        return states if ahead < 0 else torch.cat([states[:, :ahead], pool(states[:, ahead:])], dim=1)

    def projections(own: bool | Earlier = False) -> tuple[Tensor, Tensor]:
        queries, keys = tiles.projections(own)
        return each(queries), each(keys)

    side = int(features.shape[1] ** 0.5)
    return replace(tiles, features=features, grid=(side, features.shape[1] // side), projections=projections)


def frames_places(videos: int, frames: int, units: int, newlines: int = 0) -> Places:
    """Videos whose frames follow each other, with so many tokens that are no units at the end of each."""
    length = frames * units + newlines
    first = torch.arange(videos)[:, None] * length
    where = (first + torch.arange(frames) * units).flatten()[:, None] + torch.arange(units)  # [videos * frames, U]
    special = (first + frames * units + torch.arange(newlines)).flatten()
    return Places([length] * videos, [where], [where[:, -1]], special)


def tower_refusal(config: Any) -> str | None:
    """Why no reducer can act behind this tower."""
    from llava_prumerge.model.vision_tower import TOWERS

    kind = config.vision_config.model_type
    if kind not in TOWERS:
        return f"vision towers of type {kind!r} are not served; there are: {', '.join(sorted(TOWERS))}"
    if not isinstance(config.vision_feature_layer, int):
        return f"vision_feature_layer {config.vision_feature_layer!r} must be one layer"
    ahead = TOWERS[kind].prefix(config.vision_config)
    if (config.vision_feature_select_strategy == "default") != (ahead == 1):
        return "vision_feature_select_strategy must be 'default' for a tower with a class token, 'full' for one without"
    return None
