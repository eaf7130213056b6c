"""A LLaVA of a given shape with random weights, its stock twin, and class attention that selects as many patches as asked.

How long a model takes does not depend on what its weights are, as long as they are finite; how many tokens an adaptive
method keeps does depend on the image. So the one thing that is not left to chance here is the class attention: the
first channel of the keys that it is computed from is written over, which costs one small copy.

The model comes through transformers' Auto classes, as for any user of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

import llava_prumerge
from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.shapes import ModelShape
from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer

PEAK, REST = 4.0, 0.2
"""Logits: of the outliers, and the end of the range that all others lie in evenly, where none outlies the fence."""


def cut_down(shape: ModelShape, layers: int | None, blocks: int | None) -> ModelShape:
    """The same widths with fewer decoder layers, and fewer tower blocks that run (one more stands behind them).

    Raises:
        EfficiencyError: there are not so many, or the shape is of another family than LLaVA-1.5.
    """
    check_shape(shape)
    language, vision = shape.language, shape.vision
    if layers is not None:
        if not 1 <= layers <= language.layers:
            raise EfficiencyError(f"--layers {layers} is not within 1 to {language.layers}")
        language = replace(language, layers=layers)
    if blocks is not None:
        if not 1 <= blocks <= vision.run:
            raise EfficiencyError(f"--blocks {blocks} is not within 1 to {vision.run}")
        vision = replace(vision, run=blocks, blocks=blocks + 1)
    return ModelShape(shape.name, vision, language)


def check_shape(shape: ModelShape) -> None:
    """Whether a model of this shape can be made up.

    Raises:
        EfficiencyError: it is of another family than LLaVA-1.5.
    """
    if shape.vision.cut is not None:
        raise EfficiencyError(
            f"{shape.name} is of another family than LLaVA-1.5, whose shape this measures without weights; "
            "llava-prumerge profile measures a checkpoint of any family"
        )


def model_config(shape: ModelShape, kind: str = "prumerge_llava") -> LlavaConfig:
    """transformers' configuration of a shape; the image's placeholder is the last word."""
    llava_prumerge.register()
    vision, language = shape.vision, shape.language
    return AutoConfig.for_model(
        kind,
        vision_config=dict(model_type="clip_vision_model", **vision.as_config()),
        text_config=dict(
            model_type="llama",
            max_position_embeddings=4096,
            eos_token_id=None,  # every answer is as long as it was asked to be
            **language.as_config(),
        ),
        image_token_index=language.vocabulary - 1,
        image_seq_length=vision.patches,
        vision_feature_layer=vision.run - vision.blocks - 1,
    )


def random_model(shape: ModelShape, dtype: torch.dtype, device: torch.device, attn: str) -> nn.Module:
    """The model, drawn on the device itself, in evaluation mode."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(model_config(shape), dtype=dtype, attn_implementation=attn)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def stock_twin(model: nn.Module, shape: ModelShape, attn: str) -> LlavaForConditionalGeneration:
    """transformers' Llava around the very same modules: no weight is held twice."""
    config = model_config(shape, "llava")
    with torch.device("meta"):
        stock = AutoModelForImageTextToText.from_config(config, dtype=model.dtype, attn_implementation=attn)
    theirs, ours = stock.model, model.model
    theirs.vision_tower, theirs.multi_modal_projector = ours.vision_tower, ours.multi_modal_projector
    for name, module in ours.language_model.named_children():
        if name != "pruner":
            setattr(theirs.language_model, name, module)
    stock.lm_head, stock.generation_config = model.lm_head, model.generation_config
    return stock.eval()


class ShapedKeys(nn.Module):
    """A block's key projection whose first channel is written over with the logits [S] that are wanted."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear, self.logits = linear, None

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, S, C] -> [N, S, C]"""
        keys = self.linear(hidden)
        if self.logits is not None:
            keys[..., 0] = self.logits
        return keys


def shape_attention(model: nn.Module) -> ShapedKeys:
    """Make the class token's query read nothing but the first channel of the keys; the logits are then set on the result."""
    attention = model.model.vision_tower.encoder.layers[model.config.vision_feature_layer + 1].self_attn
    with torch.no_grad():
        attention.q_proj.weight.zero_()
        attention.q_proj.bias.zero_()
        attention.q_proj.bias[0] = attention.q_proj.out_features**0.5
    attention.k_proj = ShapedKeys(attention.k_proj)
    return attention.k_proj


def class_logits(patches: int, outliers: int, seed: int = 0) -> Tensor:
    """Logits of all tokens, the class token first: so many patches well above all others. [1 + P]"""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(patches, generator=generator)
    logits = torch.linspace(-REST, REST, patches)[torch.randperm(patches, generator=generator)]
    logits[order[:outliers]] = PEAK
    return torch.cat([torch.zeros(1), logits])


def adapts(reducer: VisionReducer, patches: int = 576) -> bool:
    """Whether the number of tokens it leaves depends on the image."""
    return not reducer.tokens_left(patches).exact


def kept_of(reducer: VisionReducer, logits: Tensor, side: int) -> int:
    """Tokens a reducer leaves of an image with such class attention; it runs once on a narrow one."""
    width = 8
    keys = torch.randn(1, len(logits), width, generator=torch.Generator().manual_seed(0))
    keys[..., 0] = logits
    query = torch.zeros(1, 1, width)
    query[..., 0] = width**0.5
    prompt = torch.ones(1, 4, width), torch.ones(1, 4, dtype=torch.bool)
    image = VisionTokens(
        keys[:, 1:], (side, side), lambda own=False: (query, keys), 1, lambda: prompt, torch.zeros(1, dtype=torch.long)
    )
    return int(reducer(image)[1].sum())


@torch.inference_mode()
def find_logits(block: Mapping[str, Any], tokens: int | None, side: int) -> tuple[VisionReducer, Tensor, int]:
    """A reducer and class attention with which it leaves the tokens asked for, exactly or as near as it can come.

    Args:
        block: name and settings.
        tokens: to be left; None where the settings say how many.
        side: patches along each side.

    Returns:
        The reducer, logits [1 + P], and the tokens it leaves with them.
    """
    reducer, patches = build_reducer(dict(block)).eval(), side * side
    if not adapts(reducer, patches):
        logits = class_logits(patches, patches // 16)
        kept = kept_of(reducer, logits, side)
        if tokens is not None and tokens != kept:
            raise EfficiencyError(
                f"{reducer.name} with these settings leaves {kept} tokens, not {tokens}; set its budget"
            )
        return reducer, logits, kept
    if tokens is None or not 1 <= tokens <= patches:
        raise EfficiencyError(f"{reducer.name}: {tokens} is not a number of tokens within 1 to {patches}")
    best: tuple[int, Tensor, int] | None = None
    for outliers in range(patches // 4):  # from a quarter on they are no outliers any more
        for seed in range(4):
            logits = class_logits(patches, outliers, seed)
            kept = kept_of(reducer, logits, side)
            if best is None or abs(kept - tokens) < best[0]:
                best = abs(kept - tokens), logits, kept
            if not best[0]:
                return reducer, best[1], best[2]
    return reducer, best[1], best[2]
