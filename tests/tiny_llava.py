"""A tiny LLaVA with random weights, its stock twin, and batches for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llava_prumerge.methods.base import DecoderPruner
from llava_prumerge.methods.registry import method_names
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.processors import make_processor

IMAGE, PATCHES = 99, 16
REDUCTIONS: dict[str, dict[str, Any]] = {
    "prumerge": {"vision": {"name": "prumerge", "iqr_factor": 0.2}},
    "prumerge_budget": {"vision": {"name": "prumerge", "budget": 5}},
    "prumerge_original": {
        "vision": {"name": "prumerge", "iqr_factor": 0.2, "positions": "original", "order": "raster"}
    },
    "prumerge_plus": {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}},
    "fastv_first": {"decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.25}},
    "dart_visual": {"decoder": {"name": "dart", "text_pivots": 0}},
    "pyramiddrop_budget": {"decoder": {"name": "pyramiddrop", "budget": 8}},
    "schedule_rates": {"decoder": {"name": "rank_schedule", "rates": [1, 0.75, 0.75, 0.1], "rows": "text"}},
    "schedule_budget": {"decoder": {"name": "rank_schedule", "r": 0.1, "budget": 7}},
    "pair": {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}, "decoder": {"name": "fastv", "layer": 2}},
    "pair_prumerge": {"vision": {"name": "prumerge", "iqr_factor": 0.2}, "decoder": {"name": "fastv", "layer": 2}},
    "pair_schedule": {
        "vision": {"name": "prumerge_plus", "iqr_factor": 0.2},
        "decoder": {"name": "rank_schedule", "r": 0.1, "budget": 4},
    },
    "pair_atp": {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}, "decoder": {"name": "atp_llava"}},
    **{name: {"decoder": {"name": name}} for name in method_names(DecoderPruner)},
}


def tiny_config(
    reduction: dict[str, Any] | None = None, cls: type = PruMergeLlavaConfig, **changes: Any
) -> LlavaConfig:
    """Sixteen patches, three tower blocks, four decoder layers with grouped keys."""
    vision = dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    vision |= dict(num_attention_heads=4, image_size=28, patch_size=7, projection_dim=16)
    text = dict(model_type="llama", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=4)
    text |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
    text |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    given = dict(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=PATCHES) | changes
    return cls(**given, **({} if reduction is None else {"reduction": reduction}))


def tiny_model(
    reduction: dict[str, Any] | None = None, attn: str = "sdpa", **changes: Any
) -> PruMergeLlavaForConditionalGeneration:
    """Always the same random weights; the features spread enough that outliers exist."""
    torch.manual_seed(0)
    config = tiny_config(reduction, **changes)
    config._attn_implementation = attn
    model = PruMergeLlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for block in model.model.vision_tower.encoder.layers:
            block.self_attn.q_proj.weight.mul_(40)
            block.self_attn.k_proj.weight.mul_(40)
        for block in model.model.language_model.layers:
            block.self_attn.q_proj.weight.mul_(8)
            block.self_attn.k_proj.weight.mul_(8)
    return model


def stock_twin(model: PruMergeLlavaForConditionalGeneration, attn: str = "sdpa") -> LlavaForConditionalGeneration:
    """transformers' Llava with the same weights."""
    config = tiny_config(cls=LlavaConfig)
    config._attn_implementation = attn
    stock = LlavaForConditionalGeneration(config).eval()
    stock.load_state_dict(model.state_dict(), strict=False)
    return stock


def rows_of(*sequences: list[int], side: str = "left") -> dict[str, torch.Tensor]:
    """Pad sequences of ids on a side."""
    length = max(map(len, sequences))
    left = side == "left"
    ids = [[0] * (length - len(s)) * left + s + [0] * (length - len(s)) * (not left) for s in sequences]
    mask = [[0] * (length - len(s)) * left + [1] * len(s) + [0] * (length - len(s)) * (not left) for s in sequences]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def sample_rows() -> list[list[int]]:
    """One image first, one image inside, no image, two images."""
    generator = torch.Generator().manual_seed(1)
    words = lambda n: torch.randint(3, 90, (n,), generator=generator).tolist()  # noqa: E731
    image = [IMAGE] * PATCHES
    return [
        [1, *image, *words(7)],
        [1, *words(2), *image, *words(3)],
        [1, *words(9)],
        [1, *image, *words(2), *image, *words(4)],
    ]


def pixels(count: int, seed: int = 3) -> torch.Tensor:
    """Random images, [count, 3, 28, 28]."""
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def tiny_processor() -> LlavaProcessor:
    """Tokenizer of the words w3 to w98, and image processor."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 99)} | {"<image>": IMAGE}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["<image>"], special_tokens=True)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return make_processor(fast, image_processor, tiny_config())


def write_processor(folder: Path) -> None:
    """The same as they lie beside a checkpoint."""
    tiny_processor().save_pretrained(folder)
