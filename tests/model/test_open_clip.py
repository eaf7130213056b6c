"""Converted open_clip towers give the hidden states open_clip gives, as recorded with open_clip 3.3.0."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import open_clip_reference as reference
import pytest
import torch
from safetensors.torch import save_file

from llava_prumerge.model.open_clip import convert_open_clip, load_open_clip_tower, named_architecture, vision_config
from llava_prumerge.model.parts import load_image_processor, load_tower, read_tower_config
from llava_prumerge.model.weight_files import LoadingError

VISION = reference.SETTINGS["plain"]["vision_cfg"]


@pytest.mark.parametrize("case", reference.SETTINGS)
def test_the_record_is_what_open_clip_computes(case: str) -> None:
    """Where open_clip can be imported, which takes a torchvision of the same build as torch."""
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    pytest.importorskip("open_clip")
    shapes, inner, outer = reference.compute(case)
    assert {name: list(value.shape) for name, value in reference.weights(case).items()} == shapes
    np.testing.assert_allclose(torch.stack(reference.states(case)).numpy(), inner, atol=1e-5)
    np.testing.assert_allclose(reference.features(case).numpy(), outer, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "quick"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_hidden_states_are_equal(tmp_path: Path, case: str, suffix: str) -> None:
    weights, config, checkpoint = reference.weights(case), tmp_path / "model.json", tmp_path / f"weights{suffix}"
    config.write_text(json.dumps(reference.SETTINGS[case]))
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 1}, checkpoint)
    else:
        save_file(weights, checkpoint)
    tower = load_open_clip_tower(config, checkpoint)
    with torch.no_grad():
        ours = tower(reference.pixels(case), output_hidden_states=True)
    assert tower.config.num_attention_heads == 4 and tower.config.intermediate_size == 192
    assert len(ours.hidden_states) == len(reference.states(case))
    for mine, their in zip(ours.hidden_states, reference.states(case), strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        ours.pooler_output @ weights["visual.proj"], reference.features(case), atol=1e-5, rtol=1e-5
    )


def test_named_architecture_has_the_published_shape() -> None:
    if importlib.util.find_spec("open_clip") is None:
        with pytest.raises(LoadingError, match="'ViT-L-14-336' is looked up in open_clip, which is not installed"):
            named_architecture("ViT-L-14-336")
        pytest.skip("open_clip, whose files name architectures, is not installed")
    settings = named_architecture("ViT-L-14-336")
    config = vision_config(settings["vision_cfg"], settings.get("quick_gelu", False), settings["embed_dim"])
    shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert (*shape, config.image_size, config.patch_size) == (1024, 24, 16, 336, 14)
    with pytest.raises(LoadingError, match="did you mean 'ViT-L-14-336'"):
        named_architecture("ViT-L-14-337")


def test_architectures_are_read_without_importing_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open_clip" / "model_configs").mkdir(parents=True)
    (tmp_path / "open_clip" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "open_clip" / "model_configs" / "ViT-tiny.json").write_text(json.dumps({"vision_cfg": VISION}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "open_clip", raising=False)
    assert named_architecture("ViT-tiny") == {"vision_cfg": VISION}


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ValueError, match="ls_init_value=0.1 has no counterpart"):
        vision_config({**VISION, "ls_init_value": 0.1})
    with pytest.raises(ValueError, match="no weight begins with 'visual.'"):
        convert_open_clip({"text.weight": torch.zeros(1)}, VISION)


def test_a_folder_in_open_clips_layout_is_a_vision_tower(tmp_path: Path) -> None:
    """As the Hub has them: configuration beside the weights of the whole model."""
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": reference.SETTINGS["quick"], "preprocess_cfg": statistics})
    )
    with pytest.raises(OSError, match="open_clip_model.safetensors"):
        load_tower(tmp_path, torch.float32)
    save_file(reference.weights("quick"), tmp_path / "open_clip_model.safetensors")
    tower = load_tower(tmp_path, torch.float32, "eager")
    with torch.no_grad():
        ours = tower(reference.pixels("quick"), output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours[-2], reference.states("quick")[-2], atol=1e-5, rtol=1e-5)
    assert read_tower_config(tmp_path).image_size == 32
    processor = load_image_processor(tmp_path)
    assert list(processor.image_mean) == statistics["mean"] and processor.crop_size["height"] == 32
