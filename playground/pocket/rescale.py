"""Scales a CLIP tower's residual stream so that its patch features have unit size, without changing what the tower computes.

Every block reads the stream through a LayerNorm, which a common factor does not change; so all that writes into the stream can be
scaled by one number. A projector's learning rate then means the same as with the real CLIP, whose features are about that size.
"""

from __future__ import annotations

import torch
from transformers import CLIPVisionModel

from playground.pocket.scenes import render, scenes
from playground.pocket.train_clip import pixels


@torch.no_grad()
def feature_size(tower: CLIPVisionModel, images: int = 64) -> float:
    """Root mean square of the features a projector sees, hidden_states[-2], over validation scenes."""
    shown = pixels([render(scene, index) for index, scene in enumerate(scenes("validation", 0, images))])
    hidden = tower(shown, output_hidden_states=True).hidden_states[-2][:, 1:]  # [N, P, C]
    return hidden.square().mean().sqrt().item()


@torch.no_grad()
def to_unit_features(tower: CLIPVisionModel) -> CLIPVisionModel:
    """Divide everything that writes into the residual stream by the features' size, in place."""
    factor = 1.0 / feature_size(tower)
    writers = [tower.pre_layrnorm]
    for layer in tower.encoder.layers:
        writers += [layer.self_attn.out_proj, layer.mlp.fc2]
    for module in writers:
        module.weight.mul_(factor)
        module.bias.mul_(factor)
    return tower
