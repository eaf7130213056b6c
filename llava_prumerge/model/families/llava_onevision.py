"""LLaVA-OneVision: tiles as LLaVA-NeXT's; large maps are shrunk by interpolation, frames of a video pooled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.model.families import Family
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.tiled import NEWLINE, TiledHost, frames_places, pooled, tower_refusal
from llava_prumerge.model.vision_tower import image_ids


class LlavaOnevisionHost(TiledHost):
    """Everything is projected ahead of the reducer: maps are shrunk, and frames pooled, behind the projector."""

    stacked = ("video",)

    def packing(self) -> dict[str, Any]:
        """See `TiledHost`."""
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}

    def encode_tiles(self, pixels: Tensor, layer: int | None) -> Tiles:
        """See `TiledHost`."""
        tiles = super().encode_tiles(pixels, layer)
        return replace(tiles, features=super().project(tiles.features), prefix=None)

    def project(self, features: Tensor) -> Tensor:
        """Done by now."""
        return features

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        vision_aspect_ratio: str | None = None,
        batch_num_images: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Stock features, or what the reducer leaves of them; images of which a sample has several are not cut."""
        if self.reducer is None:
            return super().get_image_features(
                pixel_values,
                image_sizes,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                vision_aspect_ratio=vision_aspect_ratio,
                batch_num_images=batch_num_images,
                **kwargs,
            )
        counts = self.tile_counts(image_sizes)
        if batch_num_images is not None:
            cut = [number == 1 for number in batch_num_images.tolist() for _ in range(number)]
            counts = [count if one else 1 for count, one in zip(counts, cut, strict=True)]
        return self.reduce_tiled(pixel_values, image_sizes, counts, vision_feature_layer)

    def get_video_features(self, pixel_values_videos: Tensor, **kwargs: Any) -> Any:
        """As of images. [videos, frames, 3, h, w]"""
        if self.reducer is None:
            return super().get_video_features(pixel_values_videos, **kwargs)
        videos, frames = pixel_values_videos.shape[:2]
        pixels = pixel_values_videos.flatten(0, 1)
        tiles = pooled(self.encode_tiles(pixels, kwargs.get("vision_feature_layer")), self.apply_pooling)
        places = frames_places(videos, frames, tiles.features.shape[1], newlines=1)
        ids = lambda _: image_ids(pixels)  # noqa: E731
        return self.reduce([tiles], places, self.project, ids, self.lines(places), modality="video")

    def reduce_shrunk(self, tiles: Tiles, pixels: Tensor, image_sizes: Tensor, counts: list[int]) -> Any:
        """A base tile and a map for each image; the stock code packs and shrinks features, queries and keys of a map alike."""
        base, groups, numbers, sizes, begin = tiles.features.shape[1], [], [], [], 0
        parts = list(zip(tiles.features.split(counts), image_sizes, counts, strict=True))
        first, ids, pixel_ids = 0, [], image_ids(pixels)
        for features, size, count in parts:
            index = torch.arange(first, first + count, device=features.device)
            lone = tiles.select(index[:1])
            marks = self._marks(features, size)
            inner = int((~marks).sum()) - base
            groups.append(lone)
            sizes.append((1, base))
            ids.append(pixel_ids[index[:1]])
            if inner:
                rows = int(marks.sum())
                whole = tiles.select(index)
                cut = lambda states, size=size, marks=marks: self._map(states, size, marks)  # noqa: E731
                ask = lambda own=False, whole=whole, cut=cut: tuple(cut(part) for part in whole.projections(own))  # noqa: E731
                groups.append(Tiles(cut(features), (rows, inner // rows), ask, tiles.heads))
                sizes.append((1, inner))
                ids.append(pixel_ids[index].sum(dim=0, keepdim=True))
            held = torch.full((len(marks),), -1)
            held[~marks.cpu()] = begin + torch.arange(base + inner)
            numbers.append(held)
            begin, first = begin + base + inner, first + count
        places = Places.of_numbers(numbers, sizes)
        return self.reduce(groups, places, nn.Identity(), lambda group: ids[group], self.lines(places))

    def _marks(self, features: Tensor, size: Tensor) -> Tensor:
        """Which places of an image hold a line break. [P] bool"""
        blank = features.new_zeros(*features.shape[:2], 1)
        return self.pack([blank], size[None], blank.new_full((1,), NEWLINE))[0][:, 0] < NEWLINE / 2

    def _map(self, states: Tensor, size: Tensor, marks: Tensor) -> Tensor:
        """States of an image's tiles [tiles, U, C] as those of its shrunk map. -> [1, U', C]"""
        packed = self.pack([states], size[None], states.new_zeros(states.shape[2]))[0]
        return packed[~marks][None, states.shape[1] :]


FAMILY = Family(host=LlavaOnevisionHost, refusal=tower_refusal)
