"""Video-LLaVA's video tower: attention over time, against a double loop written from what is published of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from temporal_clip_reference import Slow
from tiny_families import CLIP, IMG, LLAMA, VID, noise
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionModel,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

import llava_prumerge
from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.attach import attach, detach
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.towers.temporal_clip import TEMPORAL, TemporalClipConfig
from llava_prumerge.model.vision_tower import encode

T, C, HEADS = 4, CLIP["hidden_size"], CLIP["num_attention_heads"]
TOWER = {**CLIP, "model_type": "prumerge_temporal_clip", "num_frames": T}
IDS = torch.tensor([[1, *[VID] * (T * 17), 5, 6, 7]])


def whole(vision: dict[str, Any] = TOWER) -> Any:
    """A Video-LLaVA of our type, every weight random and lively."""
    llava_prumerge.register()
    config = AutoConfig.for_model(
        "prumerge_video_llava", vision_config=vision, text_config=LLAMA, image_token_index=IMG, video_token_index=VID
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


def lively(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return lively(whole())


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved without a processor. Not to be changed."""
    made = tmp_path_factory.mktemp("video") / "ours"
    model.save_pretrained(made)
    return made


@torch.no_grad()
def test_it_is_the_double_loop(model: Any) -> None:
    """Two videos at once; and the class attention is that of the next block, whose step over time comes first."""
    tower, videos = model.model.video_tower, noise(2, T, 3, 32, 32)
    slow = Slow(tower.state_dict(), HEADS, lambda x: x * torch.sigmoid(1.702 * x))
    expected = torch.cat([slow.see(video, 2) for video in videos])
    whole_pass = tower(videos.flatten(0, 1), output_hidden_states=True)
    torch.testing.assert_close(whole_pass.hidden_states[-2], expected, atol=1e-5, rtol=1e-5)
    tiles = encode(tower, videos.flatten(0, 1))
    torch.testing.assert_close(torch.cat([tiles.prefix, tiles.features], 1), expected, atol=1e-5, rtol=1e-5)
    entered = torch.cat([slow.over_time(2, part) for part in expected.split(T)])
    queries, keys = tiles.projections()
    normed = slow.norm("encoder.layers.2.layer_norm1", entered)
    for projected, name, states in ((queries, "q", normed[:, :1]), (keys, "k", normed)):
        wanted = slow.linear(f"encoder.layers.2.self_attn.{name}_proj", states)
        torch.testing.assert_close(projected, wanted, atol=1e-5, rtol=1e-5)
    other = videos.clone()
    other[0, 3] = 0
    changed = encode(tower, other.flatten(0, 1)).features
    assert not torch.allclose(changed[0], tiles.features[0])  # the first frame of the video sees the last
    torch.testing.assert_close(changed[T:], tiles.features[T:])  # the other video does not


@torch.no_grad()
def test_at_zero_it_is_clip(model: Any) -> None:
    """A new tower starts so; then embedding or output make a difference, each by itself."""
    fresh, frames = whole(), noise(T, 3, 32, 32)
    video, image = fresh.model.video_tower, fresh.model.image_tower
    image.load_state_dict({k: v for k, v in video.state_dict().items() if "temporal" not in k})
    plain = image(frames).last_hidden_state
    assert torch.equal(video(frames).last_hidden_state, plain)
    for name in ("temporal_embedding", "temporal_attn.out_proj.bias"):
        part = video.encoder.layers[0].get_parameter(name)
        part.fill_(0.3) if part.dim() == 1 else part[0, 1].fill_(0.3)
        assert not torch.allclose(video(frames).last_hidden_state, plain)
        part.zero_()


def test_images_have_a_plain_tower_and_nothing_more_is_saved(model: Any, folder: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    timely = {name for name in names if "temporal" in name}
    assert len(timely) == 3 * (1 + 2 + 8) and not any("image_tower" in name for name in timely)
    assert len(names) == len(model.state_dict())
    assert model.model.image_tower(noise(3, 3, 32, 32)).last_hidden_state.shape == (3, 17, C)


@torch.no_grad()
def test_images_need_no_other_clip_in_the_process(folder: Path) -> None:
    """transformers keeps by class what can be recorded, and writes it down when one of it is built."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    _CAN_RECORD_REGISTRY.pop(str(CLIPVisionModel), None)
    model, _ = load_model(folder)
    side = model.config.vision_config.image_size
    output = model.get_image_features(pixel_values=torch.zeros(1, 3, side, side))
    assert output.pooler_output[0].shape[0] == 16


def test_it_is_saved_and_loaded_as_it_is(model: Any, folder: Path) -> None:
    given = dict(input_ids=IDS, pixel_values_videos=noise(1, T, 3, 32, 32))
    loaded, _ = load_model(folder, device="cpu")
    assert isinstance(loaded.config.vision_config, TemporalClipConfig)
    assert torch.equal(loaded(**given).logits, model(**given).logits)
    loaded.generate(**given, max_new_tokens=1, do_sample=False)
    kept = attach(loaded, {"vision": {"name": "prumerge"}})(**given)
    assert kept.logits.shape[1] < IDS.shape[1]
    everything = attach(loaded, {"vision": {"name": "uniform", "budget": 16}})(**given)
    torch.testing.assert_close(everything.logits, model(**given).logits, atol=1e-5, rtol=1e-5)


def test_weights_that_are_missing_are_an_error(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for name in TEMPORAL:
        left = {key: value for key, value in weights.items() if name not in key}
        save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"lacks weights: model.video_tower.encoder.layers.0.{name}"):
            load_model(tmp_path, device="cpu")


def test_a_plain_configuration_does_not_drop_them(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.json").read_text().replace("prumerge_temporal_clip", "clip_vision_model")
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(InputError, match="has unknown weights: model.video_tower.encoder.layers.0.temporal"):
        load_model(tmp_path, device="cpu")


def test_taken_off_it_keeps_its_tower_and_type(model: Any, tmp_path: Path) -> None:
    """Under the stock type the tower's own type is left, which stock transformers does not know."""
    off = detach(lively(whole()))
    assert type(off) is VideoLlavaForConditionalGeneration
    off.save_pretrained(tmp_path / "off")
    again, _ = load_model(tmp_path / "off", device="cpu")
    for name, value in off.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_stock_model_of_that_configuration_is_made_ours() -> None:
    config = VideoLlavaConfig(vision_config=TemporalClipConfig(**TOWER), text_config=LLAMA)
    stock = VideoLlavaForConditionalGeneration(config)
    assert hasattr(stock.model.image_tower.encoder.layers[0], "temporal_attn")
    attach(stock)
    assert set(stock.state_dict()) == set(whole().state_dict())


def test_other_numbers_of_frames_and_other_towers_are_refused(model: Any) -> None:
    for reduction in (None, {"vision": {"name": "prumerge"}}):
        attach(model, reduction)
        with pytest.raises(InputError, match="videos of this model have 4 frames each, and these have 3"):
            model(input_ids=IDS, pixel_values_videos=noise(1, 3, 3, 32, 32))
    attach(model)
    with pytest.raises(InputError, match="5 frames are no videos of 4 frames each"):
        model.model.video_tower(noise(5, 3, 32, 32))
    with pytest.raises(InputError, match="no vision tower of type 'prumerge_other'; ours are: prumerge_temporal_clip"):
        whole({**TOWER, "model_type": "prumerge_other"})


def test_text_alone_reaches_the_temporal_weights_in_training() -> None:
    """Under DeepSpeed every rank takes part in every reduction, whatever its batch holds."""
    model = whole().train()
    model(input_ids=IDS[:, -3:], labels=IDS[:, -3:]).loss.backward()
    last = model.model.video_tower.encoder.layers[0]
    assert all(last.get_submodule(name).weight.grad is not None for name in ("temporal_layer_norm1",))
    assert last.temporal_embedding.grad is not None
