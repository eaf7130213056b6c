"""A tiny random model of every family, pixels for it, and a stock processor that goes with it, written once."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import is_torchvision_available

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


BIG = VISION | dict(image_size=64)
MISTRAL = {"model_type": "mistral", **TEXT, "sliding_window": None}
GEMMA3 = {
    "model_type": "gemma3_text", **TEXT, "head_dim": 12, "sliding_window": 24, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip


def gemma3() -> tuple[Any, dict[str, Any]]:
    tokens = dict(image_token_index=IMG, boi_token_index=112, eoi_token_index=113, mm_tokens_per_image=16)
    config = T.Gemma3Config(vision_config=SIGLIP | BIG, text_config=GEMMA3, **tokens)
    return config, dict(pixel_values=noise(1, 3, 64, 64))


def paligemma() -> tuple[Any, dict[str, Any]]:
    text = {"model_type": "gemma", **TEXT, "head_dim": 12}
    config = T.PaliGemmaConfig(vision_config=SIGLIP, text_config=text, image_token_index=IMG, projection_dim=48)
    return config, dict(pixel_values=noise(1, 3, 32, 32))


def mistral3() -> tuple[Any, dict[str, Any]]:
    vision = {"model_type": "pixtral", "head_dim": 8, **BIG}
    config = T.Mistral3Config(vision_config=vision, text_config=MISTRAL, image_token_index=IMG, spatial_merge_size=2)
    config.vision_feature_layer = -1
    return config, dict(pixel_values=noise(1, 3, 64, 48), image_sizes=torch.tensor([[64, 48]]))


def shuffled(name: str) -> tuple[Any, dict[str, Any]]:
    """One image of two tiles, in a row of three places."""
    config = AutoConfig.for_model(
        name, vision_config=BIG, text_config=LLAMA, image_token_id=IMG, scale_factor=2, tie_word_embeddings=False
    )
    return config, dict(pixel_values=torch.cat([noise(1, 2, 3, 64, 64), torch.zeros(1, 1, 3, 64, 64)], dim=1))


FAMILIES = {
    "llava": lambda: (
        T.LlavaConfig(vision_config=CLIP, text_config=LLAMA, image_token_index=IMG, image_seq_length=16),
        dict(pixel_values=noise(1, 3, 32, 32)),
    ),
    "vipllava": lambda: (
        T.VipLlavaConfig(
            vision_config=CLIP, text_config=LLAMA, image_token_index=IMG, image_seq_length=16, vision_feature_layer=[-2, 1, -3]
        ),
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
    "gemma3": gemma3,
    "paligemma": paligemma,
    "mistral3": mistral3,
    "idefics3": lambda: shuffled("idefics3"),
    "smolvlm": lambda: shuffled("smolvlm"),
    "qwen2_vl": lambda: qwen("qwen2_vl", embed_dim=32, hidden_size=48, mlp_ratio=2),
    "qwen2_5_vl": lambda: qwen(
        "qwen2_5_vl", hidden_size=32, out_hidden_size=48, intermediate_size=48, window_size=16, fullatt_block_indexes=[1]
    ),
    "qwen3_vl": lambda: qwen(
        "qwen3_vl", hidden_size=32, out_hidden_size=48, intermediate_size=48, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
    ),
}  # fmt: skip

TYPE_OF_IMAGES = {"gemma3": 1, "paligemma": 0}
"""What `token_type_ids` says of image tokens, in families that read it; 0 of text."""
MARKS = {"internvl": "<IMG_CONTEXT>", "gemma3": "<img>", "mistral3": "[IMG]"} | dict.fromkeys(
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|> <image> <|vision_end|>"
)
"""What stands for an image in a prompt; <image> where nothing is said."""


def tiny_tokenizer(name: str) -> T.PreTrainedTokenizerFast:
    """Words w3 to w99; a chat template that puts images where they stand."""
    image, video = {"internvl": "<IMG_CONTEXT>", "mistral3": "[IMG]"}.get(name, "<image>"), "<video>"
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{at}": at for at in range(3, 100)}
    words |= {"<|vision_start|>": 110, "<|vision_end|>": 111, "<img>": 112, "</img>": 113, image: IMG, video: VID}
    words |= {"[IMG_BREAK]": 114, "[IMG_END]": 115, "<fake_token_around_image>": 116, "<global-img>": 117}
    words |= {f"<row_{1 + at // 2}_col_{1 + at % 2}>": 100 + at for at in range(8)} | {"<end_of_utterance>": 118}
    core = Tokenizer(models.WordLevel(words, unk_token="w99"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"image_token": image, "video_token": video}
    if name == "internvl":
        named = dict(start_image_token="<img>", end_image_token="</img>", context_image_token=image, video_token=video)
    if name == "gemma3":
        named = dict(image_token=image, boi_token="<img>", eoi_token="</img>")
    marks = {f"special_{at}": word for word, at in words.items() if at >= 100 and word not in named.values()}
    made = T.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w99",
        extra_special_tokens=named | marks,
    )  # fmt: skip
    mark = MARKS.get(name, image)
    made.chat_template = (
        "{% for m in messages %}w10 {% for part in m['content'] %}{% if part['type'] == 'image' %}"
        + mark
        + " {% else %}"
        "{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}w11{% endif %}"
    )
    return made


CLIP_SIZE = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
PINPOINTS = dict(image_grid_pinpoints=TILED["image_grid_pinpoints"])
CUT = dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)
QWEN_SIZE = dict(patch_size=4, merge_size=2, min_pixels=64, max_pixels=2048)
PROCESSORS = {
    "llava": (T.LlavaProcessor, T.CLIPImageProcessorPil, CLIP_SIZE, CUT),
    "vipllava": (T.LlavaProcessor, T.CLIPImageProcessorPil, CLIP_SIZE, CUT),
    "llava_next": (T.LlavaNextProcessor, T.LlavaNextImageProcessorPil, CLIP_SIZE | PINPOINTS, CUT),
    "llava_next_video": (T.LlavaNextVideoProcessor, T.LlavaNextImageProcessorPil, CLIP_SIZE | PINPOINTS, CUT),
    "llava_onevision": (
        T.LlavaOnevisionProcessor, T.LlavaOnevisionImageProcessorPil, dict(size={"height": 32, "width": 32}) | PINPOINTS,
        dict(num_image_tokens=16, vision_feature_select_strategy="full"),
    ),
    "video_llava": (T.VideoLlavaProcessor, T.VideoLlavaImageProcessor, CLIP_SIZE, CUT),
    "internvl": (
        T.InternVLProcessor, T.GotOcr2ImageProcessorPil,
        dict(size={"height": 64, "width": 64}, crop_to_patches=True, min_patches=1, max_patches=4), dict(image_seq_length=16),
    ),
    "qwen2_vl": (T.Qwen2VLProcessor, T.Qwen2VLImageProcessorPil, QWEN_SIZE, {}),
    "qwen2_5_vl": (T.Qwen2_5_VLProcessor, T.Qwen2VLImageProcessorPil, QWEN_SIZE, {}),
    "qwen3_vl": (T.Qwen3VLProcessor, T.Qwen2VLImageProcessorPil, QWEN_SIZE, {}),
    "gemma3": (T.Gemma3Processor, T.Gemma3ImageProcessorPil, dict(size={"height": 64, "width": 64}), dict(image_seq_length=16)),
    "paligemma": (T.PaliGemmaProcessor, T.SiglipImageProcessorPil, dict(size={"height": 32, "width": 32}, image_seq_length=16), {}),
    "idefics3": (
        T.Idefics3Processor, T.Idefics3ImageProcessorPil,
        dict(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}), dict(image_seq_len=16),
    ),
    "smolvlm": (
        T.SmolVLMProcessor, T.SmolVLMImageProcessorPil,
        dict(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}), dict(image_seq_len=16),
    ),
}  # fmt: skip
"""The stock classes of a processor and of its part for images, and the settings of both."""
if is_torchvision_available():
    PROCESSORS["mistral3"] = (
        T.PixtralProcessor, T.PixtralImageProcessorPil, dict(size={"longest_edge": 64}, patch_size=8),
        dict(patch_size=8, spatial_merge_size=2),
    )  # fmt: skip


def have_num2words(patch: pytest.MonkeyPatch) -> None:
    """Let SmolVLM's processor be made where num2words is not installed: it writes numbers of frames in words, and no more."""
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:
        patch.setattr(processing_smolvlm, "num2words", str)
        found = importlib.util.find_spec
        patch.setattr(
            importlib.util, "find_spec", lambda name, *rest: name if name == "num2words" else found(name, *rest)
        )


def write_processor(folder: Path, name: str, template: bool = True) -> None:
    """The files of a family's processor, as they lie on the Hub; written by hand, as many classes need torchvision."""
    made, pixels, sizes, settings = PROCESSORS[name]
    tokenizer = tiny_tokenizer(name)
    chat, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(folder)
    pixels(**sizes).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": made.__name__, **settings}))
    if template:
        (folder / "chat_template.jinja").write_text(chat)


def stock_model(name: str) -> Any:
    """Random weights, livelier than freshly drawn ones."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(FAMILIES[name]()[0], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = T.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


def write_family(folder: Path, name: str) -> Path:
    """A checkpoint with its processor, as its authors would have saved it."""
    stock_model(name).save_pretrained(folder)
    write_processor(folder, name)
    return folder
