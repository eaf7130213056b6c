"""open_clip checkpoints become CLIP folders whose hidden states are open_clip's, and serve as vision towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip_reference as reference
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, CLIPVisionModel

from llava_prumerge.model.loading import load_model
from llava_prumerge.model.weight_files import LoadingError

Convert = Callable[..., list[str]]
SETTINGS = reference.SETTINGS["small"]
MEAN = [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def hidden() -> list[Tensor]:
    """What open_clip's own blocks give, from the input of the first to the output of the last."""
    return reference.states("small")


def write(root: Path, kind: str) -> tuple[Path, list[object]]:
    """open_clip's Hub layout in both formats, and a training checkpoint. -> the source and its options"""
    state = reference.weights("small")
    if kind == "checkpoint":
        (root / "model.json").write_text(json.dumps(SETTINGS))
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, root / "epoch_3.pt"
        )
        return root / "epoch_3.pt", ["--open-clip-model", root / "model.json"]
    folder = root / "hub"
    folder.mkdir()
    config = {"model_cfg": SETTINGS, "preprocess_cfg": {"mean": MEAN, "std": [0.2, 0.2, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        save_file(state, folder / "open_clip_model.safetensors")
    else:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder, []


@pytest.mark.parametrize("kind", ["safetensors", "bin", "checkpoint"])
def test_every_hidden_state_is_open_clips(hidden: list[Tensor], convert: Convert, tmp_path: Path, kind: str) -> None:
    source, options = write(tmp_path, kind)
    assert len(convert(source, "--dry-run", *options)) == 3 * 16 + 7
    convert(source, tmp_path / "clip", *options)
    assert all(key.startswith("vision_model.") for key in load_file(tmp_path / "clip" / "model.safetensors"))
    tower, report = CLIPVisionModel.from_pretrained(tmp_path / "clip", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        got = tower.eval()(reference.pixels("small"), output_hidden_states=True).hidden_states
    assert len(got) == len(hidden) == 4
    for mine, theirs in zip(got, hidden, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "clip", backend="pil")
    assert list(pixels.image_mean) == (MEAN if kind != "checkpoint" else [0.48145466, 0.4578275, 0.40821073])


def test_the_result_is_a_vision_tower(hidden: list[Tensor], sources: Path, convert: Convert, tmp_path: Path) -> None:
    source, _ = write(tmp_path, "safetensors")
    with pytest.raises(LoadingError, match="is open_clip's; convert it first"):
        convert(sources / "original", tmp_path / "llava", "--vision-tower", source)
    convert(source, tmp_path / "clip")
    convert(sources / "original", tmp_path / "llava", "--vision-tower", tmp_path / "clip")
    model, _ = load_model(tmp_path / "llava", device="cpu")
    with torch.no_grad():
        features = model.model.encode_images(reference.pixels("small")).features
    torch.testing.assert_close(features, hidden[-2][:, 1:], atol=2e-6, rtol=1e-5)


def test_towers_that_cannot_be_converted_are_refused(convert: Convert, tmp_path: Path) -> None:
    file, options = write(tmp_path, "checkpoint")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LoadingError, match="--open-clip-model names its architecture"):
        convert(file, tmp_path / "t")
    with pytest.raises(LoadingError, match="'ViT-nothing'"):
        convert(file, tmp_path / "t", "--open-clip-model", "ViT-nothing")
    with pytest.raises(LoadingError, match="becomes a CLIP folder and nothing else"):
        convert(file, tmp_path / "t", "--to", "original", *options)
    deeper = SETTINGS | {"vision_cfg": SETTINGS["vision_cfg"] | {"layers": 4}}
    (tmp_path / "model.json").write_text(json.dumps(deeper))
    with pytest.raises(LoadingError, match=r"epoch_3.pt lacks visual.transformer.resblocks.3"):
        convert(file, tmp_path / "t", *options)
    shallower = SETTINGS | {"vision_cfg": SETTINGS["vision_cfg"] | {"layers": 2}}
    (tmp_path / "model.json").write_text(json.dumps(shallower))
    with pytest.raises(LoadingError, match=r"holds .*visual.transformer.resblocks.2.*has 2 layers"):
        convert(file, tmp_path / "t", *options)
    narrower = SETTINGS | {"vision_cfg": SETTINGS["vision_cfg"] | {"width": 16}}
    (tmp_path / "model.json").write_text(json.dumps(narrower))
    with pytest.raises(LoadingError, match=r"epoch_3.pt: .* is \(32,\), the configuration makes it \(16,\)"):
        convert(file, tmp_path / "t", *options)
    pooled = SETTINGS | {"vision_cfg": SETTINGS["vision_cfg"] | {"pool_type": "avg"}}
    (tmp_path / "model.json").write_text(json.dumps(pooled))
    with pytest.raises(LoadingError, match=r"pool_type='avg' has no counterpart"):
        convert(file, tmp_path / "t", *options)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(LoadingError, match="epoch_3.pt is truncated"):
        convert(file, tmp_path / "t", *options)
    assert sorted(tmp_path.iterdir()) == before
