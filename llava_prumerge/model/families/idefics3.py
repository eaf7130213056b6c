"""Idefics 3: tiles apart from each other in the prompt, the whole image last; units are what the pixel shuffle makes of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.model.families import Family
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.placement import Places
from llava_prumerge.model.vision_tower import TowerSpec, encode, register_tower

register_tower("idefics3_vision", TowerSpec("encoder.layers"))


class ShuffledHost(Host):
    """Serves the families that are built alike."""

    decoder_name = "text_model"
    tower_names = ("vision_model",)
    projector_names = ("connector",)
    vision_model: Any
    connector: Any

    @property
    def tower(self) -> Any:
        """See `Host`."""
        return self.vision_model

    @property
    def projector(self) -> Any:
        """See `Host`."""
        return self.connector

    def blank(self) -> dict[str, dict[str, Any]]:
        """One tile; all of it zero would be taken for padding."""
        pixels = super().blank()["image"]["pixel_values"]
        return {"image": {"pixel_values": torch.ones_like(pixels)[None]}}

    def group(self, input_ids: Tensor, first: tuple[Tensor, Tensor]) -> Tensor | None:
        """See `Host`: an image ends with its whole, which the same token announces in all prompts, the last one of a row's."""
        rows, columns = first
        ahead = input_ids[rows, columns - 1]
        last = torch.cat([rows[1:] != rows[:-1], torch.ones_like(rows[:1], dtype=torch.bool)])
        ends = last | (ahead == ahead[-1])
        return ends.cumsum(0) - ends.long()

    def get_image_features(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Stock features of each row's tiles, or what the reducer leaves of them. [B, tiles, 3, h, w], blank ones behind"""
        connector, patch = self.connector, self.config.vision_config.patch_size
        tiles = pixel_values.flatten(0, 1)
        real = (tiles != 0).flatten(1).any(dim=1)
        if self.reducer is None:
            output = super().get_image_features(pixel_values, pixel_attention_mask, **kwargs)
            units = sum(len(part) for part in output.pooler_output) // max(1, int(real.sum()))
            return self.tell(output, lambda: Places.whole(sum(map(len, output.pooler_output)) // units, units, units))
        tiles = tiles[real].to(self.dtype)
        if pixel_attention_mask is None:
            seen = torch.ones_like(tiles[:, 0, ::patch, ::patch], dtype=torch.bool)
        else:
            mask = pixel_attention_mask.flatten(0, 1)[real]
            seen = mask.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).any(dim=-1).any(dim=2)
        rows, columns = seen.shape[1:]
        numbers = torch.arange(rows * columns, device=tiles.device).view(1, -1, 1)
        units = connector.pixel_shuffle(numbers, connector.scale_factor)[0]  # [U, patches]
        cut = encode(self.vision_model, tiles, -1, units, last=True, patch_attention_mask=seen)

        def project(features: Tensor) -> Tensor:
            return connector.modality_projection(in_dtype_of(connector, features))

        places = Places.whole(len(tiles), len(units), len(units))
        output = self.reduce([cut], places, project, lambda _: tiles)
        each = real.view(pixel_values.shape[:2]).sum(dim=1).tolist()  # as the stock code has it, a part for each row
        output.pooler_output = [part.flatten(0, 1) for part in torch.stack(output.pooler_output).split(each)]
        return output

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`: the longest side becomes a whole number of tiles, then the other; the whole image is one more."""
        vision, fold = self.config.vision_config, self.config.scale_factor**2
        _, patches, *_ = super().cut(height, width, pixels)
        side = (pixels.get("max_image_size") or {}).get("longest_edge", vision.image_size)
        longest = (pixels.get("size") or {}).get("longest_edge", 4 * side)
        ratio = longest / max(height, width)
        rows, columns = (max(1, -(-round(part * ratio) // side)) for part in (height, width))
        tiles = rows * columns + (rows * columns > 1)
        return tiles, patches, fold, tiles * patches // fold, 0


FAMILY = Family(since="5.18", host=ShuffledHost)
