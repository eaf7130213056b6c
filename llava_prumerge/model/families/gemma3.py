"""Gemma 3: SigLIP's patches averaged to few tokens; those of an image see each other, all else looks back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from llava_prumerge.model.families import Family
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.placement import ForwardPass, Places
from llava_prumerge.model.vision_tower import encode


class Gemma3Host(Host):
    """Averaging is a part of the projector and comes before all that is not linear in it, so that merging commutes with it."""

    def hand_over(self, kwargs: dict[str, Any], told: ForwardPass) -> None:
        """See `Host`: the marks of image tokens say which see each other."""
        marks = kwargs.pop("token_type_ids", None)
        if marks is not None:
            told.blocks = get_block_sequence_ids_for_mask(marks)
        self.carry_mask(kwargs, told, {})

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Stock features, or what the reducer leaves of them. [N, 3, h, w]"""
        if self.reducer is None:
            return super().get_image_features(pixel_values, **kwargs)
        side, kernel = self.multi_modal_projector.tokens_per_side, self.multi_modal_projector.kernel_size
        patches = torch.arange((side * kernel) ** 2, device=pixel_values.device)
        units = patches.view(side, kernel, side, kernel).transpose(1, 2).reshape(side * side, kernel * kernel)
        tiles = encode(self.vision_tower, pixel_values.to(self.dtype), -1, units, last=True)
        averaged = tiles.features.unflatten(-1, (kernel * kernel, -1)).mean(dim=-2)  # [N, U, C]
        places = Places.whole(len(pixel_values), side * side, side * side)
        tiles = replace(tiles, features=averaged)
        return self.reduce([tiles], places, self.project, lambda _: pixel_values, stacked=side * side)

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D]; the module takes whole images alone, so that each token stands in all places it averages."""
        module = self.multi_modal_projector
        side, kernel = module.tokens_per_side, module.kernel_size
        rows = in_dtype_of(module, features.flatten(0, -2))
        whole = F.pad(rows, (0, 0, 0, -len(rows) % (side * side))).view(-1, side, side, rows.shape[-1])
        patches = whole.repeat_interleave(kernel, dim=1).repeat_interleave(kernel, dim=2).flatten(1, 2)
        return module(patches).flatten(0, 1)[: len(rows)].view(*features.shape[:-1], -1)

    def cut(self, height: int, width: int, pixels: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
        """See `Host`."""
        _, patches, *_ = super().cut(height, width, pixels)
        return 1, patches, patches // self.config.mm_tokens_per_image, self.config.mm_tokens_per_image, 0


FAMILY = Family(
    host=Gemma3Host,
    places=lambda config: config.mm_tokens_per_image,
    mark=lambda processor: processor.boi_token,
    beside=lambda processor, ids, labels: {"token_type_ids": (ids == processor.tokenizer.image_token_id).long()},
)
