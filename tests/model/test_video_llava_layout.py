"""Video-LLaVA as its authors publish it: in, and out again bit for bit, and what the port on the Hub lacks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_layouts as layouts
import published_video_llava as published
import pytest
import torch
from peft import LoraConfig, get_peft_model
from published_layouts import ROWS, WORDS, Published
from published_video_llava import BLOCKS, IMAGE, PAD, PLACES, VIDEO, VISION, T
from safetensors.torch import load_file
from temporal_clip_reference import Slow
from torch.nn import functional as F
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.adapters import Base, plain_name, save_adapter
from llava_prumerge.model.checkpoints.layout import recognise_source
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.modeling import ReducedCache
from llava_prumerge.model.part_names import part_names


@pytest.fixture(scope="module")
def world(
    model: Published, tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory, convert: Callable
) -> Path:
    """video, image (settings), ours. Not to be changed."""
    root = tmp_path_factory.mktemp("video_llava")
    published.write(root / "video", model, tokenizer_model)
    published.write_tower(root / "image", None)
    convert(root / "video", root / "ours", "--vision-tower", root / "image", "--reduction", "prumerge_plus")
    return root


def project(model: Published, x: torch.Tensor) -> torch.Tensor:
    p = model.projector
    return F.gelu(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]


@torch.no_grad()
def test_converted_it_gives_what_the_original_gives(world: Path, model: Published) -> None:
    """An image (256 tokens at real size) and a video (257 a frame, the class token with it) against tower, projector and Llama."""
    assert recognise_source(world / "video")[0].name == "video_llava"
    made, processor = load_model(world / "ours", reduction={}, device="cpu")
    config = made.config
    assert (config.image_token_id, config.video_token_id, config.text_config.pad_token_id) == (IMAGE, VIDEO, PAD)
    assert (config.image_seq_length, config.video_seq_length, config.vision_config.num_frames) == (16, T * PLACES, T)
    torch.manual_seed(4)
    image, video = torch.randn(1, 3, 28, 28), torch.randn(T, 3, 28, 28)
    ids = torch.tensor([[1, 9, *[IMAGE] * 16, 10, *[VIDEO] * (T * PLACES), 11, 12, 13]])
    seen = [Slow(tower, VISION["num_attention_heads"], F.gelu) for tower in published.towers()]
    x = model.llama.model.embed_tokens(ids.clamp(max=WORDS - 1))
    x[ids == IMAGE] = project(model, seen[0].see(image, BLOCKS - 1)[:, 1:]).flatten(0, 1)
    x[ids == VIDEO] = project(model, seen[1].see(video, BLOCKS - 1)).flatten(0, 1)
    given = dict(input_ids=ids, pixel_values=image, pixel_values_videos=video[None])
    logits = made(**given, attention_mask=torch.ones_like(ids)).logits[..., :WORDS]
    torch.testing.assert_close(logits, model.llama(inputs_embeds=x).logits, atol=2e-3, rtol=1e-3)
    asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is it?"}]}]
    text = processor.apply_chat_template([*asked], add_generation_prompt=True)
    assert text.endswith("questions. USER: <video>\nwhat is it? ASSISTANT:")
    assert processor.tokenizer("<video> the quick").input_ids[1] == VIDEO


def test_the_way_back_is_bit_for_bit(world: Path, convert: Callable, tmp_path: Path, model: Published) -> None:
    convert(world / "ours", tmp_path / "back", "--to", "video_llava")
    held, made = {}, load_file(tmp_path / "back" / "model.safetensors")
    for file in (world / "video").glob("*.bin"):
        held |= torch.load(file, weights_only=True)
    held = {key: value for key, value in held.items() if not key.endswith(("inv_freq", "position_ids"))}
    assert held.keys() == made.keys()
    assert all(torch.equal(value, made[key]) and value.dtype == made[key].dtype for key, value in held.items())
    for name in ("config.json", "tokenizer_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (world / "video", tmp_path / "back"))
        assert {key: after[key] for key in before} == before
    assert "mm_vision_tower" not in json.loads((tmp_path / "back" / "config.json").read_text())
    assert (world / "video" / "tokenizer.model").read_bytes() == (tmp_path / "back" / "tokenizer.model").read_bytes()
    convert(tmp_path / "back", tmp_path / "again", "--vision-tower", world / "image")
    first, second = (load_file(folder / "model.safetensors") for folder in (world / "ours", tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_towers_may_lie_in_folders_of_their_own(
    world: Path, convert: Callable, tmp_path: Path, model: Published, tokenizer_model: bytes
) -> None:
    published.write(tmp_path / "video", model, tokenizer_model, inside=False)
    image, video = published.towers()
    folders = (
        published.write_tower(tmp_path / "image", image),
        published.write_tower(tmp_path / "clips", video, add_time_attn=True, num_frames=T),
    )
    convert(tmp_path / "video", tmp_path / "ours", "--vision-tower", folders[0], "--video-tower", folders[1])
    first, second = (load_file(folder / "model.safetensors") for folder in (world / "ours", tmp_path / "ours"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    taken = json.loads((tmp_path / "ours" / "conversion.json").read_text())["taken"]
    assert taken == {"vision tower": "image", "video tower": "clips"}


@torch.no_grad()
def test_the_method_in_its_configuration_acts(world: Path) -> None:
    made, _ = load_model(world / "ours", device="cpu")
    ids = torch.tensor([[1, 9, *[VIDEO] * (T * PLACES), 11, 12, 13]])
    output = made(input_ids=ids, pixel_values_videos=torch.randn(1, T, 3, 28, 28))
    assert output.logits.shape[1] < ids.shape[1] and isinstance(output.past_key_values, ReducedCache)


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, (), "--vision-tower names the folder of LanguageBind/LanguageBind_Image"),
        ({"mm_projector_type": "linear"}, ("image",), "mm_projector_type is 'linear'; converted are 'mlp2x_gelu'"),
        ({"hidden_size": 32}, ("image",), "the configuration makes it"),
        ({"inside": False}, ("image",), "--video-tower names the folder of LanguageBind/LanguageBind_Video_merge"),
        ({"inside": False}, ("image", "image"), "the video tower lacks model.video_tower.video_tower.encoder.layers.0.temporal_emb"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_in_one_line(
    changes: dict[str, Any], words: tuple[str, ...], said: str, model: Published, tokenizer_model: bytes, convert: Callable,
    tmp_path: Path,
) -> None:  # fmt: skip
    published.write(tmp_path / "video", model, tokenizer_model, **changes)
    published.write_tower(tmp_path / "image", published.towers()[0])
    options = [word for pair in zip(("--vision-tower", "--video-tower"), words, strict=False) for word in pair]
    options = [str(tmp_path / word) if word == "image" else word for word in options]
    with pytest.raises(InputError) as refused:
        convert(tmp_path / "video", tmp_path / "ours", *options)
    assert said in str(refused.value) and "\n" not in str(refused.value) and not (tmp_path / "ours").exists()


def test_layouts_refuse_each_others_models(world: Path, ours: Path, convert: Callable, tmp_path: Path) -> None:
    for source, target, said in (
        (world / "ours", "original", "the original layout holds llava models, and this is a 'video_llava'"),
        (world / "ours", "llava-hf", "the llava-hf layout holds llava models, and this is a 'video_llava'"),
        (ours, "video_llava", "the video_llava layout holds video_llava models, and this is a 'llava'"),
    ):
        with pytest.raises(InputError, match=said):
            convert(source, tmp_path / "out", "--to", target)


def test_the_port_is_loaded_as_it_is_and_says_what_it_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both towers of one CLIP but for its class embedding and last norm, as on the Hub."""
    text = layouts.TEXT | dict(model_type="llama", vocab_size=ROWS)
    stock = VideoLlavaForConditionalGeneration(VideoLlavaConfig(vision_config=VISION, text_config=text)).eval()
    inner = stock.model
    inner.video_tower.load_state_dict(inner.image_tower.state_dict())
    with torch.no_grad():
        for part in (inner.video_tower.embeddings.class_embedding, *inner.video_tower.post_layernorm.parameters()):
            part.add_(1)
    stock.save_pretrained(tmp_path / "port")
    with caplog.at_level(logging.WARNING, "llava_prumerge"):
        loaded, _ = load_model(tmp_path / "port", device="cpu")
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("llava_prumerge")]
    total = len(inner.image_tower.state_dict())
    assert f"port: its video tower has no attention over time ({total - 3} of its {total} tensors are those" in line
    assert "the paper's numbers cannot be expected" in line and "\n" not in line
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "ours")
    caplog.clear()
    load_model(tmp_path / "ours", device="cpu")
    assert not [record for record in caplog.records if record.name.startswith("llava_prumerge")]


def test_lora_learns_behind_the_tower_and_its_adapters_load_and_merge(
    world: Path, convert: Callable, tmp_path: Path
) -> None:
    """With the frames of a video reduced together; the towers take no part."""
    reduction = {"vision": {"name": "prumerge", "frames": "joint"}}
    model, processor = load_model(world / "ours", reduction=reduction, device="cpu")
    modules = r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=modules))
    torch.manual_seed(0)
    ids = torch.tensor([[1, 9, *[VIDEO] * (T * PLACES), 11, 12, 13, 14]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 3, -100)
    given = dict(input_ids=ids, pixel_values_videos=torch.randn(1, T, 3, 28, 28))
    trained = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    assert trained and not any("_tower" in name for name in trained)
    optimiser, losses = torch.optim.AdamW(trained.values(), lr=1e-2), []
    for _ in range(6):
        output = wrapped(**given, labels=labels)
        assert output.logits.shape[1] < ids.shape[1]
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    parts = part_names(wrapped)
    state = {
        name: value.detach().clone()
        for name, value in wrapped.named_parameters()
        if name in trained or parts.role(plain_name(name)) == "projector"
    }
    save_adapter(wrapped, tmp_path / "lora", state, Base(model=str(world / "ours")), processor)
    convert(tmp_path / "lora", tmp_path / "merged", "--merge")
    with torch.no_grad():
        logits = wrapped.eval()(**given).logits
        for folder in ("lora", "merged"):
            loaded, _ = load_model(tmp_path / folder, device="cpu")
            assert loaded.config.reduction == reduction
            torch.testing.assert_close(loaded(**given).logits, logits, atol=2e-2, rtol=1e-2)
