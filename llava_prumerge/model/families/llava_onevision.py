"""LLaVA-OneVision: tiles as LLaVA-NeXT's; large maps are shrunk by interpolation, frames of a video pooled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.model.families import Family
from llava_prumerge.model.frames import PIXELS
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.tiled import NEWLINE, TiledHost, frames_places, pooled, tower_refusal


class LlavaOnevisionHost(TiledHost):
    """Everything is projected ahead of the reducer: maps are shrunk, and frames pooled, behind the projector."""

    old_stock_packs_videos = False

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
        """As of all that is tiled, with what this family takes besides; [images, tiles, 3, h, w]"""
        more = dict(vision_aspect_ratio=vision_aspect_ratio, batch_num_images=batch_num_images)
        return super().get_image_features(
            pixel_values, image_sizes, vision_feature_layer, vision_feature_select_strategy, **more, **kwargs
        )

    def cut_counts(self, image_sizes: Tensor, batch_num_images: Tensor | None = None) -> list[int]:
        """Images of which a sample has several are not cut."""
        counts = super().cut_counts(image_sizes)
        if batch_num_images is None:
            return counts
        cut = [number == 1 for number in batch_num_images.tolist() for _ in range(number)]
        return [count if one else 1 for count, one in zip(counts, cut, strict=True)]

    def get_video_features(self, pixel_values_videos: Tensor, **kwargs: Any) -> Any:
        """As of images. [videos, frames, 3, h, w]"""
        if self.reducer is None:
            output = super().get_video_features(pixel_values_videos, **kwargs)
            return self.tell_frames(output, pixel_values_videos.shape[1], newlines=1)
        videos, frames = pixel_values_videos.shape[:2]
        pixels = pixel_values_videos.flatten(0, 1)
        tiles = pooled(self.encode_tiles(pixels, kwargs.get("vision_feature_layer")), self.apply_pooling)
        places = frames_places(videos, frames, tiles.features.shape[1], newlines=1)
        lines, stacked = self.lines(places), places.lengths[0]
        return self.reduce([tiles], places, self.project, lambda _: pixels, lines, modality="video", stacked=stacked)

    def shrunk_places(self, units: int, image_sizes: Tensor, counts: list[int]) -> Places:
        """A base tile and a map for each image, the map a group of its own."""
        numbers, sizes, begin = [], [], 0
        for size, count in zip(image_sizes, counts, strict=True):
            marks = self._marks(units, count, size)
            held, inner = torch.full((len(marks),), -1), int((~marks).sum())
            held[~marks] = begin + torch.arange(inner)
            numbers.append(held)
            sizes += [(1, units), (1, inner - units)] if inner > units else [(1, units)]
            begin += inner
        return Places.of_numbers(numbers, sizes)

    def reduce_shrunk(
        self, tiles: Tiles, pixels: Tensor, places: Places, image_sizes: Tensor, counts: list[int]
    ) -> Any:
        """The stock code packs and shrinks features, queries and keys of a map alike."""
        units, groups, seen, first = tiles.features.shape[1], [], [], 0
        for size, count in zip(image_sizes, counts, strict=True):
            index = torch.arange(first, first + count, device=tiles.features.device)
            groups.append(tiles.select(index[:1]))
            seen.append(pixels[first : first + 1])
            marks = self._marks(units, count, size)
            inner, rows = int((~marks).sum()) - units, int(marks.sum())
            if inner:
                whole = tiles.select(index)
                cut = lambda states, size=size, marks=marks: self._map(states, size, marks)  # noqa: E731
                ask = lambda own=False, whole=whole, cut=cut: tuple(cut(part) for part in whole.projections(own))  # noqa: E731
                groups.append(Tiles(cut(whole.features), (rows, inner // rows), ask, tiles.heads))
                seen.append(pixels[first : first + count].flatten(0, 1)[None])
            first += count
        return self.reduce(groups, places, nn.Identity(), lambda group: seen[group], self.lines(places))

    def _marks(self, units: int, tiles: int, size: Tensor) -> Tensor:
        """Which places of an image hold a line break. [P] bool, on CPU"""
        blank = torch.zeros(tiles, units, 1)
        return self.pack([blank], size[None], blank.new_full((1,), NEWLINE))[0][:, 0] < NEWLINE / 2

    def _map(self, states: Tensor, size: Tensor, marks: Tensor) -> Tensor:
        """States of an image's tiles [tiles, U, C] as those of its shrunk map. -> [1, U', C]"""
        packed = self.pack([states], size[None], states.new_zeros(states.shape[2]))[0]
        return packed[~marks.to(packed.device)][None, states.shape[1] :]


FAMILY = Family(host=LlavaOnevisionHost, refusal=tower_refusal, videos=PIXELS | {"size": {"height": 384, "width": 384}})
