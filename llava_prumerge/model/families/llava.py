"""LLaVA-1.5 and its kin: any served tower, one projector, any served language model. An image is one tile of patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_prumerge.model.families import Family
from llava_prumerge.model.family_processors import read_processor
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.packed_tower import encode_packed
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.processors import load_processor
from llava_prumerge.model.vision_tower import TOWERS, depth_of, encode, patch_grid, prefix_tokens, resize


class LlavaHost(Host):
    """See the file."""

    own_arguments = ("image_index",)
    caches_tower = True

    @property
    def resizes(self) -> bool:
        """See `Views`."""
        return not _sees_any_size(self.config)

    def encode_images(self, pixel_values: Tensor, feature_layer: int | None = None) -> Tiles:
        """Tower features at the size the reducer asks for. [N, 3, h, w] -> [N, P, C]"""
        if self.reducer is not None:
            height, width = pixel_values.shape[-2:]
            size = self.reducer.input_size(height, width, self.config.vision_config.patch_size)
            pixel_values = resize(pixel_values, size)
        layer = self.config.vision_feature_layer if feature_layer is None else feature_layer
        return encode(self.vision_tower, pixel_values, layer)

    def project(self, features: Tensor) -> Tensor:
        """[N, K, C] -> [N, K, D]"""
        return self.multi_modal_projector(in_dtype_of(self.multi_modal_projector, features))

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        image_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock features, or what the reducer leaves of them; image_index [N] takes each of several equal images once."""
        if image_sizes is None and self.vision_tower.config.model_type == "pixtral":  # else all images are one to it
            image_sizes = torch.tensor([pixel_values.shape[-2:]] * len(pixel_values), device=pixel_values.device)
        if self.reducer is None:
            given = {} if image_sizes is None else {"image_sizes": image_sizes}
            layers = dict(
                vision_feature_layer=vision_feature_layer, vision_feature_select_strategy=vision_feature_select_strategy
            )
            if given or getattr(self.vision_tower, "cache", None) is None or isinstance(vision_feature_layer, list):
                output = super().get_image_features(pixel_values=pixel_values, **layers, **given, **kwargs)
            else:
                output = self._plain_features(pixel_values, **layers)
            if image_index is not None:
                output.pooler_output = [output.pooler_output[at] for at in image_index.tolist()]
            return output
        if _sees_any_size(self.config):
            return self._packed(pixel_values, image_sizes, vision_feature_layer)
        layers = () if vision_feature_layer is None else (vision_feature_layer,)
        tiles = self.encode_images(pixel_values, *layers)
        tiles = tiles if image_index is None else tiles.select(image_index)
        rest = _beside_patches(self.vision_tower, tiles, vision_feature_select_strategy or self._strategy)
        rows, columns = patch_grid(self.vision_tower, pixel_values)
        places = Places.whole(len(tiles.features), rows * columns, math.prod(tiles.grid), ahead=rest.shape[1])
        special = self.project(rest).flatten(0, 1) if rest.shape[1] else None
        pixels = lambda _: pixel_values if image_index is None else pixel_values[image_index]  # noqa: E731
        return self.reduce([tiles], places, self.project, pixels, special)

    def _plain_features(
        self, pixel_values: Tensor, vision_feature_layer: int | None, vision_feature_select_strategy: str | None
    ) -> Any:
        """The stock features by way of `encode`, which knows what the tower has made before."""
        tiles = self.encode_images(pixel_values, vision_feature_layer)
        rest = _beside_patches(self.vision_tower, tiles, vision_feature_select_strategy or self._strategy)
        features = self.multi_modal_projector(
            torch.cat([rest, tiles.features], dim=1) if rest.shape[1] else tiles.features
        )
        return BaseModelOutputWithPooling(pooler_output=list(features))

    def _packed(self, pixel_values: Tensor, image_sizes: Tensor, feature_layer: int | None) -> Any:
        """Of a tower that sees all images as one sequence; line breaks between their rows are tokens of the text."""
        tower, layer = self.vision_tower, self.config.vision_feature_layer if feature_layer is None else feature_layer
        sizes = image_sizes.tolist()
        grids = [(height // tower.patch_size, width // tower.patch_size) for height, width in sizes]
        depth = depth_of(tower, layer)
        packed = encode_packed(
            tower,
            lambda: tower(pixel_values, image_sizes=image_sizes, output_hidden_states=True, return_dict=True),
            lambda output: output.hidden_states[depth][0],
            grids,
            depth,
        )
        pixels = packed.pixels(lambda at: pixel_values[at, :, : sizes[at][0], : sizes[at][1]])
        return self.reduce(packed.tiles, packed.places, self.project, pixels)

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`: a square of the processor's size, or the image at its own size as the processor rounds it."""
        vision = self.config.vision_config
        if _sees_any_size(self.config):
            ratio = max(height / vision.image_size, width / vision.image_size, 1.0)
            patches = math.prod(math.ceil(int(side / ratio) / vision.patch_size) for side in (height, width))
            return 1, patches, 1, patches, 0
        ahead = prefix_tokens(self.vision_tower) - (self._strategy == "default")
        tokens = self.config.image_seq_length  # DINOv2 takes other sizes than the one it was trained at
        return 1, tokens - ahead, 1, tokens, ahead

    def blank(self) -> dict[str, dict[str, Any]]:
        """A tower of any size is told the size."""
        given = super().blank()
        if _sees_any_size(self.config):
            pixels = given["image"]["pixel_values"]
            given["image"]["image_sizes"] = torch.tensor([pixels.shape[-2:]], device=pixels.device)
        return given

    @property
    def _strategy(self) -> str:
        return self.config.vision_feature_select_strategy


def _beside_patches(tower: nn.Module, tiles: Tiles, strategy: str) -> Tensor:
    """What the stock model hands on beside patches: registers, or the class token too where it selects all. [N, R, C]"""
    cut = 1 if strategy == "default" else 0
    return tiles.features[:, :0] if tiles.prefix is None else tiles.prefix[:, cut:]


def _refusal(config: Any) -> str | None:
    """Of a reducer on this model."""
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    if not isinstance(layer, int):
        return f"vision_feature_layer {layer!r} must be one layer"
    kind = config.vision_config.model_type
    if kind not in TOWERS:
        return f"vision towers of type {kind!r} are not served; there are: {', '.join(sorted(TOWERS))}"
    if strategy == "default" and not TOWERS[kind].prefix(config.vision_config):
        return "vision_feature_select_strategy 'default' cuts off a class token, and this tower has none: take 'full'"
    return None


def _sees_any_size(config: Any) -> bool:
    return config.vision_config.model_type == "pixtral"


def _read_processor(folder: Any, config: Any) -> Any:
    return read_processor(folder, config) if _sees_any_size(config) else load_processor(folder, config)


FAMILY = Family(
    host=LlavaHost,
    refusal=_refusal,
    places=lambda config: None if _sees_any_size(config) else config.image_seq_length,
    templates=lambda config: not _sees_any_size(config),
    processor=_read_processor,
)
