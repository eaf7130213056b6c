"""The parts a LLaVA is put together from: tokenizer, vision tower and image processor, and the configuration they make."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_MAPPING,
    AutoImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.open_clip import OpenClipFolder
from llava_prumerge.model.strict_loading import in_one_line, load_strictly, read_config
from llava_prumerge.model.vision_tower import TOWERS
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.text.tokenizers import IMAGE_TOKEN

VOCABULARY_MULTIPLE = 64  # llava-hf pads 32002 rows to 32064
# What a whole CLIP or SigLIP holds beside its vision tower.
UNUSED_BY_TOWER = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")


def read_tower_config(path: str | Path) -> PreTrainedConfig:
    """The vision configuration of a tower's folder: a vision model, a whole CLIP, or open_clip's Hub layout."""
    if OpenClipFolder.is_one(path):
        return OpenClipFolder(path).config()
    config = read_config(path)
    return getattr(config, "vision_config", config)


def load_tower(path: str | Path, dtype: torch.dtype, attn: str | None = None) -> PreTrainedModel:
    """The vision tower of such a folder, in evaluation mode."""
    if OpenClipFolder.is_one(path):
        tower = OpenClipFolder(path).tower().to(dtype)
        if attn is not None:
            tower.set_attn_implementation(attn)
        return tower
    config = read_tower_config(path)
    kind = MODEL_MAPPING[type(config)]
    return load_strictly(kind, path, UNUSED_BY_TOWER, config=config, dtype=dtype, attn_implementation=attn).eval()


def load_image_processor(path: str | Path) -> Any:
    """The image processor of such a folder, on Pillow's backend."""
    if OpenClipFolder.is_one(path):
        return CLIPImageProcessorPil(**OpenClipFolder(path).pixels())
    with in_one_line(path):
        return AutoImageProcessor.from_pretrained(path, backend="pil")


def input_side(image_processor: Any) -> int:
    """Side in pixels of what an image processor makes of an image, which a LLaVA-1.5 pads to a square. S

    Raises:
        LoadingError: it makes no square of one size.
    """
    sizes = [getattr(image_processor, name, None) or {} for name in ("crop_size", "size")]
    crops = bool(getattr(image_processor, "do_center_crop", False))
    size = dict(sizes[0] if crops and sizes[0] else sizes[1])
    sides = {size[key] for key in ("height", "width", "shortest_edge", "longest_edge") if size.get(key)}
    if len(sides) != 1:
        raise LoadingError(
            f"a {type(image_processor).__name__} makes images of size {size}, which is no square of one size"
        )
    return int(sides.pop())


def vocabulary_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Embedding rows needed: those there are, or more up to a multiple of 64 where the tokenizer has outgrown them."""
    return rows if len(tokenizer) <= rows else math.ceil(len(tokenizer) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def assembled_config(
    text: PreTrainedConfig,
    vision: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    reduction: dict[str, Any] | None,
    side: int | None = None,
) -> PruMergeLlavaConfig:
    """The configuration of the whole.

    Args:
        text, vision: of the parts.
        tokenizer: already has its special tokens.
        reduction: the block for config.json.
        side: of the tower's input in pixels; None: the one it was made for. DINOv2's image processors take another.

    Raises:
        LoadingError: towers of this type are not served, or the side is no multiple of its patches.
    """
    if vision.model_type not in TOWERS:
        known = ", ".join(sorted(TOWERS))
        raise LoadingError(f"a {vision.model_type!r} is no vision tower that is served; there are: {known}")
    side, ahead = side or vision.image_size, TOWERS[vision.model_type].prefix(vision)
    if side % vision.patch_size:
        raise LoadingError(f"images of {side} pixels a side are no whole number of patches of {vision.patch_size}")
    config = PruMergeLlavaConfig(
        vision_config=vision.to_dict(),
        text_config={**text.to_dict(), "vocab_size": vocabulary_rows(tokenizer, text.vocab_size)},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // vision.patch_size) ** 2 + max(ahead - 1, 0),  # registers are visual tokens
        vision_feature_select_strategy="default" if ahead else "full",
        reduction=reduction,
    )
    config.text_config.pad_token_id = tokenizer.pad_token_id
    return config
