"""Converted open_clip towers give the hidden states open_clip gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import llava_prumerge  # noqa: F401  makes torchvision importable beside a CPU torch
from llava_prumerge.model.open_clip import convert_open_clip, load_open_clip_tower, vision_config

open_clip = pytest.importorskip("open_clip")

VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "mlp_ratio": 3.0}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}


def _random_model(folder: Path, quick_gelu: bool) -> tuple[torch.nn.Module, Path]:
    name = f"tiny_{'quick' if quick_gelu else 'plain'}"
    settings = {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": VISION, "text_cfg": TEXT}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    open_clip.factory.add_model_config(path)
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():  # open_clip starts norms and biases at one and zero, which would hide a mix-up
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, path


def _their_states(visual: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    states: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: states.append(out)) for block in visual.transformer.resblocks
    ]
    with torch.no_grad():
        visual(pixels)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_hidden_states_are_equal(tmp_path: Path, quick_gelu: bool, suffix: str) -> None:
    model, config = _random_model(tmp_path, quick_gelu)
    checkpoint = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": wrapped, "epoch": 1}, checkpoint)
    else:
        from safetensors.torch import save_file

        save_file({name: value.clone() for name, value in model.state_dict().items()}, checkpoint)
    tower = load_open_clip_tower(config, checkpoint)
    pixels = torch.randn(2, 3, 32, 32)
    theirs = _their_states(model.visual, pixels)
    with torch.no_grad():
        ours = tower(pixels, output_hidden_states=True)
        pooled = model.visual(pixels)
    assert tower.config.num_attention_heads == 4 and tower.config.intermediate_size == 192
    assert len(ours.hidden_states) == len(theirs) + 1
    for mine, their in zip(ours.hidden_states[1:], theirs, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pooler_output @ model.visual.proj, pooled, atol=1e-5, rtol=1e-5)


def test_named_architecture_has_the_published_shape() -> None:
    settings = open_clip.get_model_config("ViT-L-14-336")
    config = vision_config(settings["vision_cfg"], settings.get("quick_gelu", False), settings["embed_dim"])
    shape = (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.image_size,
        config.patch_size,
    )
    assert shape == (1024, 24, 16, 336, 14)


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ValueError, match="ls_init_value=0.1 has no counterpart"):
        vision_config({**VISION, "ls_init_value": 0.1})
    with pytest.raises(ValueError, match="no weight begins with 'visual.'"):
        convert_open_clip({"text.weight": torch.zeros(1)}, VISION)


def test_a_folder_in_open_clips_layout_is_a_vision_tower(tmp_path: Path) -> None:
    """As the Hub has them: configuration beside the weights of the whole model."""
    from safetensors.torch import save_file

    from llava_prumerge.model.parts import load_image_processor, load_tower, read_tower_config

    model, config = _random_model(tmp_path, True)
    folder = tmp_path / "hub"
    folder.mkdir()
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": json.loads(config.read_text()), "preprocess_cfg": pixels})
    )
    with pytest.raises(FileNotFoundError, match="open_clip_model.safetensors"):
        load_tower(folder, torch.float32)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    image = torch.randn(2, 3, 32, 32)
    tower = load_tower(folder, torch.float32, "eager")
    ours = tower(image, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours[-2], _their_states(model.visual, image)[-2], atol=1e-5, rtol=1e-5)
    assert read_tower_config(folder).image_size == 32
    processor = load_image_processor(folder)
    assert list(processor.image_mean) == pixels["mean"] and processor.crop_size["height"] == 32
