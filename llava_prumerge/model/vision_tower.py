"""The vision tower up to the layer whose features are used, and the attention of the block that would come next.

`hidden_states[-2]` is the input of the last block: its queries and keys are one projection away, so that block is never run, no hook
is needed and any attention backend serves. The same goes for the block before, whose input is kept until its features
are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TowerOutput:
    """What the tower gives for a batch of images.

    Attributes:
        features: [N, P, C] of the patches.
        grid: (rows, columns).
        probe: gives queries [N, R, C] and keys [N, S, C] of the next block, or with own=True of the block that made the
            features (see `methods.base.VisionTokens`).
        heads: attention heads of these blocks.
        class_token: [N, 1, C] the class token's feature; None where the tower has none.
    """

    features: Tensor
    grid: tuple[int, int]
    probe: Callable[..., tuple[Tensor, Tensor]]
    heads: int
    class_token: Tensor | None = None

    def select(self, index: Tensor) -> TowerOutput:
        """The same for images taken from these, some of them several times. [N'] -> features [N', P, C]"""

        def probe(own: bool = False) -> tuple[Tensor, Tensor]:
            queries, keys = self.probe(own)
            return queries[index], keys[index]

        token = None if self.class_token is None else self.class_token[index]
        return replace(self, features=self.features[index], probe=probe, class_token=token)


def has_class_token(tower: nn.Module) -> bool:
    """Whether the first token is a class token (CLIP) or a patch (SigLIP)."""
    return hasattr(_inner(tower).embeddings, "class_embedding")


def resize(pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased; nothing happens at the same size. [N, 3, h, w] -> [N, 3, *size]"""
    if tuple(pixel_values.shape[-2:]) == tuple(size):
        return pixel_values
    return F.interpolate(pixel_values.float(), size=size, mode="bicubic", antialias=True).to(pixel_values.dtype)


def image_ids(pixel_values: Tensor, index: Tensor | None = None) -> Tensor:
    """A number for each image made from its pixels: the same in every batch and on every rank. [N, 3, h, w] -> [N] int64

    With an index [N'] those of the images it takes from these.
    """
    levels = (
        (pixel_values.float() * 64).round().long().flatten(1)
    )  # coarse: the same under any floating-point precision
    weights = torch.arange(1, levels.shape[1] + 1, device=levels.device) * 2654435761 % 2147483647
    ids = (levels * weights).sum(dim=1)
    return ids if index is None else ids[index]


def encode(tower: nn.Module, pixel_values: Tensor, feature_layer: int = -2) -> TowerOutput:
    """Run embeddings and just the blocks below the wanted hidden state.

    Args:
        tower: transformers' CLIPVisionModel, or SiglipVisionModel (no class token).
        pixel_values: [N, 3, h, w], sides multiples of the patch size; other than the trained size interpolates the positions.
        feature_layer: index into the tower's hidden states, as in LLaVA's configuration.

    Raises:
        ValueError: there is no block after that hidden state, or the sides do not fit.
    """
    inner = _inner(tower)
    config, blocks = tower.config, inner.encoder.layers
    depth = feature_layer if feature_layer >= 0 else len(blocks) + 1 + feature_layer
    if not 0 <= depth < len(blocks):
        raise ValueError(
            f"vision_feature_layer {feature_layer} has no block after it in a tower of {len(blocks)} blocks"
        )
    height, width = pixel_values.shape[-2:]
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(f"image sides {height} x {width} are not multiples of the patch size {config.patch_size}")
    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trains):
        interpolate = (height, width) != (config.image_size, config.image_size)
        hidden = inner.embeddings(pixel_values.to(dtype=tower.dtype), interpolate_pos_encoding=interpolate)
        if hasattr(inner, "pre_layrnorm"):
            hidden = inner.pre_layrnorm(hidden)
        before = hidden
        for block in blocks[:depth]:
            before, hidden = hidden, block(hidden, attention_mask=None)  # [N, S, C]
    first = 1 if has_class_token(tower) else 0

    def probe(own: bool = False) -> tuple[Tensor, Tensor]:
        if own and depth == 0:
            raise ValueError(f"vision_feature_layer {feature_layer} takes the embeddings: no block made them")
        block, states = (blocks[depth - 1], before) if own else (blocks[depth], hidden)
        with torch.set_grad_enabled(trains):
            normed = block.layer_norm1(states)
            rows = normed[:, :1] if first else normed
            return block.self_attn.q_proj(rows), block.self_attn.k_proj(normed)

    grid = (height // config.patch_size, width // config.patch_size)
    token = hidden[:, :1] if first else None
    return TowerOutput(hidden[:, first:], grid, probe, config.num_attention_heads, token)


def _inner(tower: nn.Module) -> nn.Module:
    """Some transformers towers keep their parts one level down."""
    return getattr(tower, "vision_model", tower)
