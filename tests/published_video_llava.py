"""A tiny Video-LLaVA in the layout of LanguageBind/Video-LLaVA-7B, and its towers in folders of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import published_layouts as layouts
import torch
from published_layouts import WORDS, Published
from transformers import CLIPVisionConfig, CLIPVisionModel

T, PLACES, IMAGE, VIDEO, PAD = 8, 17, WORDS, WORDS + 1, WORDS + 2
VISION = layouts.VISION | dict(hidden_act="gelu")
C, BLOCKS = VISION["hidden_size"], VISION["num_hidden_layers"]
Weights = dict[str, torch.Tensor]


def towers() -> tuple[Weights, Weights]:
    """Of images, a stock CLIP's; of videos, the same names and those of the temporal weights."""
    torch.manual_seed(3)
    image, video = (
        {k: v.half() for k, v in CLIPVisionModel(CLIPVisionConfig(**VISION)).state_dict().items()} for _ in "iv"
    )
    image, video = ({k: v for k, v in one.items() if "position_ids" not in k} for one in (image, video))
    for at in range(BLOCKS):
        stem = f"encoder.layers.{at}."
        shapes = {"temporal_embedding": (1, T, C)} | {f"temporal_layer_norm1.{one}": (C,) for one in ("weight", "bias")}
        for name in "qkv":
            shapes |= {f"temporal_attn.{name}_proj.weight": (C, C), f"temporal_attn.{name}_proj.bias": (C,)}
        shapes |= {"temporal_attn.out_proj.weight": (C, C), "temporal_attn.out_proj.bias": (C,)}
        video |= {stem + name: (torch.randn(shape) * 0.2).half() for name, shape in shapes.items()}
    return image, video


def write(folder: Path, model: Published, tokenizer: bytes, inside: bool = True, **changes: Any) -> Weights:
    """LanguageBind/Video-LLaVA-7B in this size. -> its tensors"""
    state = model.original()
    if inside:
        for name, tower in zip(("image", "video"), towers(), strict=True):
            state |= {f"model.{name}_tower.{name}_tower.{key}": value for key, value in tower.items()}
            state[f"model.{name}_tower.{name}_tower.embeddings.position_ids"] = torch.arange(PLACES)[None]
    layouts.write_shards(folder, state)
    values = layouts.original_config("llava_llama")
    values.pop("mm_vision_tower")
    named = dict(
        mm_image_tower="LanguageBind/LanguageBind_Image", mm_video_tower="LanguageBind/LanguageBind_Video_merge"
    )
    layouts.write_json(folder / "config.json", values | named | changes)
    layouts.write_tokenizer(folder, tokenizer)
    return state


def write_tower(folder: Path, tower: Weights | None, **more: Any) -> Path:
    """LanguageBind's folder of a tower, with the text side; its configuration alone for None."""
    folder.mkdir()
    settings = dict(
        model_type="LanguageBindImage", vision_config=VISION | dict(lora_r=2, force_patch_dropout=0.5) | more
    )
    layouts.write_json(folder / "config.json", settings)
    if tower is not None:
        state = {f"vision_model.{key}": value for key, value in tower.items()}
        state |= {"text_model.embeddings.token_embedding.weight": torch.zeros(3, 4), "logit_scale": torch.tensor(1.0)}
        torch.save(state, folder / "pytorch_model.bin")
    return folder
