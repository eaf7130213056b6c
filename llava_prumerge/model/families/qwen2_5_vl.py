"""Qwen2.5-VL: as Qwen2-VL, with a tower that permutes units by windows."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

from llava_prumerge.model.families import Family
from llava_prumerge.model.native import PACKED_FRAMES, NativeHost, vision_mark
from llava_prumerge.model.vision_tower import TowerSpec, register_tower

for _name in ("qwen2_5_vl", "qwen2_5_vl_vision"):
    register_tower(_name, TowerSpec("blocks", "norm1", "attn", heads="num_heads"))


class WindowedHost(NativeHost):
    """See the file."""

    def unit_order(self, grid_thw: Tensor) -> Tensor:
        """The tower's permutation, undone."""
        tower = self.visual
        window, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
            kwargs={},
        )
        return torch.argsort(window)


FAMILY = Family(host=WindowedHost, language="qwen2_5_vl_text", mark=vision_mark, videos=PACKED_FRAMES)
