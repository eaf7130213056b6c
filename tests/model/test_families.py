"""Every family, tiny: without a method it is stock, keeping all is stock, and every method runs or says in one line why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from transformers import AutoConfig, AutoModelForImageTextToText

from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.methods.registry import discover, method_names
from llava_prumerge.model.attach import attach
from llava_prumerge.model.families import family_types

IMG, VID = 120, 121
TEXT = dict(
    vocab_size=128, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
)
CLIP = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
LLAMA = {"model_type": "llama", **TEXT}
TILED = dict(image_token_index=IMG, image_seq_length=16, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]])


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tiled(name: str, vision: dict[str, Any], **more: Any) -> tuple[Any, dict[str, Any]]:
    config = AutoConfig.for_model(name, vision_config=vision, text_config=LLAMA, **TILED, **more)
    return config, dict(pixel_values=noise(1, 5, 3, 32, 32), image_sizes=torch.tensor([[60, 64]]))


def qwen(name: str, **vision: Any) -> tuple[Any, dict[str, Any]]:
    rope = dict(rope_type="default", mrope_section=[2, 2, 2], rope_theta=1e4)
    extra = {"head_dim": 12} if name == "qwen3_vl" else {}
    if name == "qwen3_vl":
        rope["mrope_interleaved"] = True
    both = dict(depth=3, num_heads=2, in_channels=3, patch_size=4, temporal_patch_size=2, spatial_merge_size=2)
    tokens = dict(image_token_id=IMG, video_token_id=VID, vision_start_token_id=110, vision_end_token_id=111)
    text = TEXT | extra | dict(rope_parameters=rope, rope_scaling=rope)
    config = AutoConfig.for_model(name, vision_config=both | vision, text_config=text, **tokens)
    return config, dict(pixel_values=noise(64, 96), image_grid_thw=torch.tensor([[1, 8, 8]]))


def internvl() -> tuple[Any, dict[str, Any]]:
    vision = VISION | dict(image_size=[64, 64], patch_size=[8, 8], norm_type="layer_norm", attention_bias=True)
    config = T.InternVLConfig(vision_config=vision, text_config=LLAMA, image_token_id=IMG, image_seq_length=16)
    config.vision_feature_layer = -1
    return config, dict(pixel_values=noise(1, 3, 64, 64))


FAMILIES = {
    "llava": lambda: (
        T.LlavaConfig(vision_config=CLIP, text_config=LLAMA, image_token_index=IMG, image_seq_length=16),
        dict(pixel_values=noise(1, 3, 32, 32)),
    ),
    "llava_next": lambda: tiled("llava_next", CLIP, vision_feature_layer=-2),
    "llava_next_video": lambda: tiled("llava_next_video", CLIP, vision_feature_layer=-2, video_token_index=VID),
    "llava_onevision": lambda: tiled(
        "llava_onevision", SIGLIP, vision_feature_layer=-1, vision_feature_select_strategy="full", video_token_index=VID
    ),
    "video_llava": lambda: (
        T.VideoLlavaConfig(
            vision_config=CLIP, text_config=LLAMA, image_token_index=IMG, video_token_index=VID, vision_feature_layer=-2
        ),
        dict(pixel_values=noise(1, 3, 32, 32)),
    ),
    "internvl": internvl,
    "qwen2_vl": lambda: qwen("qwen2_vl", embed_dim=32, hidden_size=48, mlp_ratio=2),
    "qwen2_5_vl": lambda: qwen(
        "qwen2_5_vl", hidden_size=32, out_hidden_size=48, intermediate_size=48, window_size=16, fullatt_block_indexes=[1]
    ),
    "qwen3_vl": lambda: qwen(
        "qwen3_vl", hidden_size=32, out_hidden_size=48, intermediate_size=48, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
    ),
}  # fmt: skip
MADE: dict[str, tuple[Any, dict[str, Any], torch.Tensor]] = {}


@torch.no_grad()
def made(name: str) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """A stock model, a batch for it (an image with text, text alone, padded on the left), and its logits."""
    if name not in MADE:
        config, inputs = FAMILIES[name]()
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        count = sum(len(one) for one in model.model.get_image_features(**inputs, return_dict=True).pooler_output)
        row = [1, 5, 6, *[IMG] * count, 7, 8, 9]
        ids = torch.tensor([row, [0] * (len(row) - 6) + [1, 11, 12, 13, 14, 15]])
        mask = (ids != 0).long()
        batch = dict(input_ids=ids, attention_mask=mask, **inputs)
        if name.startswith("qwen"):
            batch["mm_token_type_ids"] = (ids == IMG).long()
        MADE[name] = model, batch, model(**batch).logits
    return MADE[name]


every = pytest.mark.parametrize("name", FAMILIES)


def test_every_family_is_here() -> None:
    assert sorted(FAMILIES) == family_types()


@every
@torch.no_grad()
def test_without_a_method_it_is_stock_and_keeping_all_gives_stock_logits(name: str) -> None:
    model, batch, expected = made(name)
    assert torch.equal(attach(model)(**batch).logits, expected)
    kept = attach(model, {"vision": {"name": "uniform", "sample": "first", "budget": 4096}})(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(kept[real], expected[real], atol=1e-4, rtol=1e-4)
    text = attach(model, {"vision": {"name": "uniform", "budget": 3}})(**batch).logits[1, -6:]
    torch.testing.assert_close(text, expected[1, -6:], atol=1e-4, rtol=1e-4)


@every
@torch.no_grad()
@pytest.mark.parametrize("method", [*method_names(VisionReducer), *method_names(DecoderPruner)])
def test_every_method_runs_or_says_why_not(name: str, method: str) -> None:
    model, batch, expected = made(name)
    site = "vision" if issubclass(discover()[method], VisionReducer) else "decoder"
    block = {"name": method} | ({"budget": 4} if site == "vision" and method != "none" else {})
    try:
        logits = attach(model, {site: block})(**batch).logits
        ids = model.generate(**batch, max_new_tokens=2, do_sample=False)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and method in str(error), f"{error!r} names no method in one line"
        return
    finally:
        attach(model)
    assert logits.isfinite().all() and ids.shape[0] == 2
    assert logits.shape[1] < expected.shape[1] or method in ("none", "atp_llava")


def frames_of_video_llava() -> tuple[Any, dict[str, Any]]:
    config, _ = FAMILIES["video_llava"]()
    return config, dict(pixel_values_videos=noise(2, 3, 3, 32, 32))


def tiles_of_internvl() -> tuple[Any, dict[str, Any]]:
    config, _ = internvl()
    return config, dict(pixel_values=noise(4, 3, 64, 64))


@pytest.mark.parametrize(
    ("make", "token", "places", "tiles"),
    [
        (tiles_of_internvl, IMG, [48, 16], [3, 1]),
        (frames_of_video_llava, VID, [51, 51], [3, 3]),
        (FAMILIES["llava_next"], IMG, [16 + 8 * 9], [5]),
        (FAMILIES["llava_onevision"], IMG, [16 + 8 * 9], [5]),
        (FAMILIES["qwen2_5_vl"], IMG, [16], [1]),
    ],
)
@torch.no_grad()
def test_statistics_count_images_of_the_user_and_tiles_or_frames(
    make: Any, token: int, places: list[int], tiles: list[int]
) -> None:
    """Each image is a run of placeholders; with a budget of 2 each tile keeps 2, and what is no patch stays."""
    config, inputs = make()
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    ids = torch.tensor([[1, *[part for count in places for part in [*[token] * count, 5, 6]]]])
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    if "image_grid_thw" in inputs:
        batch["mm_token_type_ids"] = (ids == token).long()
    number = len(places)
    special = {51: 3, 16 + 8 * 9: 8}.get(places[0], 0)  # a class token for each frame, a line break for each row
    for block, kept in (
        (None, places),
        ({"vision": {"name": "uniform", "budget": 2}}, [2 * t + special for t in tiles]),
    ):
        attach(model, block)
        for run in (lambda: model(**batch), lambda: model.generate(**batch, max_new_tokens=1)):
            run()
            told = model.reduction_stats()
            assert (told["images"], told["tiles"]) == (number, sum(tiles))
            assert told["kept_mean"] == pytest.approx(sum(kept) / number)
            assert told["kept_per_tile"] == pytest.approx(sum(kept) / sum(tiles))
            assert (told["kept_min"], told["kept_max"]) == (min(kept), max(kept))
