"""Scaling the residual stream changes the size of the features and nothing else."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from playground.pocket.rescale import feature_size, to_unit_features


def test_features_get_unit_size_and_the_tower_computes_the_same() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=96, patch_size=8
    )
    tower = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 96, 96)
    before = tower(images, output_hidden_states=True)
    size = feature_size(tower)
    after = to_unit_features(tower)(images, output_hidden_states=True)
    torch.testing.assert_close(after.pooler_output, before.pooler_output, atol=5e-3, rtol=1e-2)
    torch.testing.assert_close(after.hidden_states[-2] * size, before.hidden_states[-2], atol=5e-3, rtol=1e-2)
    assert abs(feature_size(tower) - 1) < 1e-3 < abs(size - 1)
