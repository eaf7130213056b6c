"""Random pocket-sized models of other families, to be trained on the pocket world: `python playground/pocket/families.py FAMILY [OUT]`.

llava_next   a base tile and a map of tiles of 96 pixels, in Vicuna's words
qwen2_5_vl   images at their own size, in ChatML

The tokenizer is the pocket language model's. Nothing is trained before: configs/train/pocket/FAMILY.yaml does that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parents[1])  # this folder itself must not shadow installed packages

import playground.pocket  # noqa: E402, F401  before transformers: see its first lines

SIDE, PATCH = 96, 8
TEXT = dict(
    hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=640,
    max_position_embeddings=2048, tie_word_embeddings=False,
)  # fmt: skip
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def llava_next(tokenizer: Any) -> tuple[Any, Any, dict[str, Any], str]:
    """-> configuration, image processor, the processor's settings, chat template"""
    import transformers as T

    from llava_prumerge.text.templates import chat_template

    vision = dict(
        hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE, patch_size=PATCH, projection_dim=96
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = T.LlavaNextConfig(
        vision_config=T.CLIPVisionConfig(**vision).to_dict(), text_config=T.LlamaConfig(**TEXT).to_dict(), image_token_index=image,
        image_grid_pinpoints=PINPOINTS, image_seq_length=(SIDE // PATCH) ** 2,
    )  # fmt: skip
    pixels = T.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    settings = dict(patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return config, pixels, settings | {"processor_class": "LlavaNextProcessor"}, chat_template("vicuna_v1")


def qwen2_5_vl(tokenizer: Any) -> tuple[Any, Any, dict[str, Any], str]:
    """As above."""
    import transformers as T

    tokenizer.add_tokens(list(CHATML_TOKENS), special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    number = tokenizer.convert_tokens_to_ids
    rope = dict(rope_type="default", mrope_section=[4, 6, 6], rope_theta=1e4)
    vision = dict(
        depth=3, hidden_size=96, out_hidden_size=TEXT["hidden_size"], intermediate_size=256, num_heads=4, in_channels=3, patch_size=PATCH,
        temporal_patch_size=2, spatial_merge_size=2, window_size=4 * PATCH, fullatt_block_indexes=[1],
    )  # fmt: skip
    names = dict(
        image="<|image_pad|>", video="<|video_pad|>", vision_start="<|vision_start|>", vision_end="<|vision_end|>"
    )
    config = T.Qwen2_5_VLConfig(
        vision_config=vision, text_config=TEXT | dict(rope_parameters=rope, rope_scaling=rope),
        **{f"{name}_token_id": number(token) for name, token in names.items()},
    )  # fmt: skip
    pixels = T.Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, min_pixels=32 * 32, max_pixels=SIDE * SIDE)
    return config, pixels, {"processor_class": "Qwen2_5_VLProcessor"}, CHATML


FAMILIES = {"llava_next": llava_next, "qwen2_5_vl": qwen2_5_vl}


def build(family: str, out: Path, seed: int = 0) -> Path:
    """Write a random model with its processor's files. -> its folder"""
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    from llava_prumerge.text.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(HERE / "backbones" / "lm")
    config, pixels, settings, template = FAMILIES[family](tokenizer)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config.text_config.update(ends)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(out)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    written = out / "tokenizer_config.json"
    values = json.loads(written.read_text())
    number = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    if config.image_token_id == number:  # what a processor takes for an image's place
        values["extra_special_tokens"] = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        written.write_text(json.dumps(values, indent=2) + "\n")
    pixels.save_pretrained(out)
    (out / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("out", nargs="?", type=Path, help="(default: playground/pocket/work/FAMILY)")
    given = parser.parse_args()
    print(build(given.family, given.out or HERE / "work" / given.family))  # noqa: T201


if __name__ == "__main__":
    main()
