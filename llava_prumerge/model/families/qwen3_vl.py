"""Qwen3-VL: as Qwen2-VL; features of earlier tower blocks, added after the first decoder layers, follow their tokens."""

from __future__ import annotations

from llava_prumerge.model.families import Family
from llava_prumerge.model.native import PACKED_FRAMES, NativeHost, vision_mark
from llava_prumerge.model.vision_tower import TowerSpec, register_tower

for _name in ("qwen3_vl", "qwen3_vl_vision"):
    register_tower(_name, TowerSpec("blocks", "norm1", "attn", heads="num_heads"))

FAMILY = Family(
    host=NativeHost,
    language="qwen3_vl_text",
    mark=vision_mark,
    videos=PACKED_FRAMES
    | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16, "bounds_whole_videos": True}
    | {"size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}},
)
