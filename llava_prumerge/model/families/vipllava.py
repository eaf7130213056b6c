"""ViP-LLaVA: LLaVA-1.5 whose patches carry several of CLIP's hidden states side by side, normalised ahead of the projector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.model.families import Family
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.placement import Places
from llava_prumerge.model.vision_tower import TOWERS, blocks_of, depth_of, encode, prefix_tokens


class VipLlavaHost(Host):
    """Attention and keys are those of the block behind the last of the hidden states."""

    def project(self, features: Tensor) -> Tensor:
        """[..., layers x C] -> [..., D]"""
        return self.multi_modal_projector(in_dtype_of(self.multi_modal_projector, features))

    def get_image_features(
        self, pixel_values: Tensor, vision_feature_layer: int | list[int] | None = None, **kwargs: Any
    ) -> Any:
        """Stock features, or what the reducer leaves of them. [N, 3, h, w]"""
        if self.reducer is None:
            return super().get_image_features(pixel_values, vision_feature_layer=vision_feature_layer, **kwargs)
        layers = _layers(self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer)
        tower = self.vision_tower
        depths = [depth_of(tower, layer) for layer in layers]
        with outputs_of(tower, depths) as states:
            tiles = encode(tower, pixel_values.to(self.dtype), max(depths))
        features = torch.cat([states[depth][:, prefix_tokens(tower) :] for depth in depths], dim=-1)
        count = features.shape[1]
        places = Places.whole(len(pixel_values), count, count)
        tiles = replace(tiles, features=features)
        return self.reduce([tiles], places, self.project, lambda _: pixel_values, stacked=count)


@contextmanager
def outputs_of(tower: nn.Module, depths: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Hidden states [N, S, C] of a pass of the tower, by their number; that of number i comes out of block i - 1."""
    found: dict[int, Tensor] = {}
    handles = []
    for depth in set(depths):

        def keep(_: nn.Module, args: Any, output: Any, depth: int = depth) -> None:
            found[depth] = output[0] if isinstance(output, tuple) else output

        handles.append(blocks_of(tower)[depth - 1].register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layers(named: int | Sequence[int]) -> list[int]:
    return [named] if isinstance(named, int) else list(named)


def _refusal(config: Any) -> str | None:
    kind = config.vision_config.model_type
    if kind not in TOWERS or TOWERS[kind].prefix(config.vision_config) != 1:
        return f"the tower must have a class token, which the model cuts off, and a {kind!r} has none that is served"
    blocks = config.vision_config.num_hidden_layers
    if any(layer % (blocks + 1) == 0 for layer in _layers(config.vision_feature_layer)):
        return "vision_feature_layer takes the tower's embeddings: no block made them"
    return None


FAMILY = Family(since="5.18", host=VipLlavaHost, refusal=_refusal, places=lambda config: config.image_seq_length)
