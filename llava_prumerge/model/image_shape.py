"""What a model of any family makes of an image of a size, in numbers: from its own modules, which are built without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from llava_prumerge.model.attach import attach, stock_class_of
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.model.vision_tower import blocks_of, depth_of, prefix_tokens, tower_spec


@dataclass(frozen=True)
class ImageShape:
    """An image of a size, and the modules that see it.

    Attributes:
        tiles: how often the tower runs on it.
        patches: of a tile.
        fold: patches of a unit, the tokens that the language model gets of it.
        tokens: of the image for the language model; `special` of them are no units (line breaks, class tokens).
        blocks: of the tower; `run` of them make the features.
        width, intermediate, heads: of a block; `gated` where its FFN has three matrices.
        prefix: tokens before the patches.
        window: patches that attention of most blocks sees; 0 for all. `whole` blocks see all of them.
        patch_inputs: numbers a patch is made from.
        tower_parameters: all of them.
        projector: (inputs, outputs) of its matrices, which see one row for each unit; `projector_parameters` all of them.
    """

    tiles: int
    patches: int
    fold: int
    tokens: int
    special: int
    blocks: int
    run: int
    width: int
    intermediate: int
    heads: int
    gated: bool
    prefix: int
    window: int
    whole: int
    patch_inputs: int
    tower_parameters: int
    projector: tuple[tuple[int, int], ...]
    projector_parameters: int

    @property
    def units(self) -> int:
        """Tokens of a tile, without those that are no units."""
        return self.patches // self.fold


def stock_config(values: Mapping[str, Any]) -> Any:
    """The configuration that a config.json's values make, of a checkpoint of ours or a stock one.

    Raises:
        ValueError: its family is not served.
    """
    kind = stock_type(str(values.get("model_type")))
    family_of(kind)
    return CONFIG_MAPPING[kind](
        **{key: value for key, value in values.items() if key not in ("model_type", "reduction", "architectures")}
    )


def image_shape(config: Any, height: int, width: int, pixels: Mapping[str, Any]) -> ImageShape:
    """Of a served family's configuration, and an image of this size in pixels.

    `pixels` are the settings of the processor's part for images, {} for the defaults.

    Raises:
        ValueError: the family is not served, or the configuration makes no model of it.
    """
    with torch.device("meta"):
        model = stock_class_of(config)(config)
    host = attach(model).model
    tower, projector = host.tower, host.projector
    spec, block = tower_spec(tower), blocks_of(tower)[0]
    size = getattr(block, spec.norm).weight.shape[0]
    mlp = [part for name, part in block.named_modules() if isinstance(part, nn.Linear) and spec.attention not in name]
    inside = {id(parameter) for parameter in projector.parameters()}
    first = next(part for part in tower.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
    layer = getattr(config, "vision_feature_layer", None)
    layers = [layer] if isinstance(layer, int) else list(layer or ())
    whole = getattr(tower.config, "fullatt_block_indexes", None)
    tiles, patches, fold, tokens, special = host.cut(height, width, pixels)
    return ImageShape(
        tiles,
        patches,
        fold,
        tokens,
        special,
        blocks=len(blocks_of(tower)),
        run=max((depth_of(tower, one) for one in layers), default=len(blocks_of(tower))),
        width=size,
        intermediate=sum(part.weight.numel() for part in mlp) // (size * max(1, len(mlp))),
        heads=getattr(tower.config, spec.heads),
        gated=len(mlp) == 3,
        prefix=prefix_tokens(tower),
        window=0 if whole is None else (tower.config.window_size // tower.config.patch_size) ** 2,
        whole=0 if whole is None else len(whole),
        patch_inputs=first.weight[0].numel(),
        tower_parameters=sum(part.numel() for part in tower.parameters() if id(part) not in inside),
        projector=tuple((m.in_features, m.out_features) for m in projector.modules() if isinstance(m, nn.Linear)),
        projector_parameters=sum(part.numel() for part in projector.parameters()),
    )
