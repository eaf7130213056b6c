"""Qwen2-VL: images and videos at their own size; a unit is the patches that the merger makes a token of."""

from __future__ import annotations

from llava_prumerge.model.families import Family
from llava_prumerge.model.native import PACKED_FRAMES, NativeHost, vision_mark
from llava_prumerge.model.vision_tower import TowerSpec, register_tower

for _name in ("qwen2_vl", "qwen2_vl_vision"):
    register_tower(_name, TowerSpec("blocks", "norm1", "attn", heads="num_heads"))

FAMILY = Family(host=NativeHost, language="qwen2_vl_text", mark=vision_mark, videos=PACKED_FRAMES)
