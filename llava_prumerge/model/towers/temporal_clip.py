"""CLIP with attention over time: Video-LLaVA's tower for videos (LanguageBind_Video_merge).

Before the attention over a frame's patches, each block adds an embedding of the frame's number and lets the T frames of one
place attend to each other (LanguageBind, Zhu et al., ICLR 2024, Fig. 3; Video-LLaVA, Lin et al., EMNLP 2024). The sum stays in
the residual stream, so that the embedding and the attention's output at zero make it the plain CLIP.

transformers builds both towers of a Video-LLaVA of one configuration, and has no type for this one. Ours has: stock
transformers refuses it, where under CLIP's type it would load the tower and leave its temporal weights out. The tower for
images is made plain after it is built (`plain_tower`).
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, CLIPVisionModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.utils.output_capturing import OutputRecorder

from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.families import PREFIX
from llava_prumerge.model.vision_tower import TowerSpec, register_tower

TEMPORAL = ("temporal_embedding", "temporal_layer_norm1", "temporal_attn")
"""What a block has beyond CLIP's, by the names of the published weights."""


@strict
class TemporalClipConfig(CLIPVisionConfig):
    """CLIP's configuration, and the number T of frames that every video has."""

    model_type = PREFIX + "temporal_clip"

    num_frames: int = 8


class TemporalBlock(CLIPEncoderLayer):
    """A block of CLIP with a step over time ahead of it."""

    def __init__(self, config: TemporalClipConfig) -> None:
        super().__init__(config)
        self.frames = config.num_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attn = CLIPAttention(config)

    def over_time(self, hidden: Tensor) -> Tensor:
        """The step over time. [videos x T, S, C] -> the same

        Raises:
            ModelError: these are not T frames of each video.
        """
        if len(hidden) % self.frames:
            raise ModelError(
                f"{len(hidden)} frames are no videos of {self.frames} frames each, as the tower wants them"
            )
        by_place = hidden.unflatten(0, (-1, self.frames)).transpose(1, 2)  # [videos, S, T, C]
        videos, places = by_place.shape[:2]
        by_place = by_place.flatten(0, 1)
        if self.frames > 1:
            by_place = by_place + self.temporal_embedding
        mixed, _ = self.temporal_attn(hidden_states=self.temporal_layer_norm1(by_place), attention_mask=None)
        return (by_place + mixed).unflatten(0, (videos, places)).transpose(1, 2).flatten(0, 1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Over time, then CLIP's own. [videos x T, S, C] -> the same"""
        return super().forward(self.over_time(hidden_states), attention_mask, **kwargs)


class TemporalClipModel(CLIPVisionModel):
    """CLIP's vision model of such blocks: pixels [videos x T, 3, h, w], the frames of a video one after the other."""

    config_class = TemporalClipConfig
    _no_split_modules = ["TemporalBlock", *CLIPVisionModel._no_split_modules]
    _can_record_outputs = {
        "hidden_states": CLIPEncoderLayer,
        "attentions": OutputRecorder(CLIPAttention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: TemporalClipConfig) -> None:
        super().__init__(config)
        self.encoder.layers = nn.ModuleList(TemporalBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As CLIP's; a tower that was never trained on videos sees each frame as CLIP does."""
        super()._init_weights(module)
        if isinstance(module, TemporalBlock):
            for part in (
                module.temporal_embedding,
                module.temporal_attn.out_proj.weight,
                module.temporal_attn.out_proj.bias,
            ):
                init.zeros_(part)


def plain_tower(tower: nn.Module) -> None:
    """Take the step over time off a tower, in place: it is then CLIP's own, and sees images one by one."""
    if not isinstance(tower, TemporalClipModel):
        return
    for block in tower.encoder.layers:
        for name in TEMPORAL:
            delattr(block, name)
        block.__class__ = CLIPEncoderLayer
    tower.__class__ = CLIPVisionModel
    with torch.device("meta"):  # transformers notes what a class can record when one of it is first built
        CLIPVisionModel(
            CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        )


def _ahead(block: nn.Module, states: Tensor) -> Tensor:
    """What a block's attention over patches begins with."""
    return block.over_time(states) if isinstance(block, TemporalBlock) else states


AutoConfig.register(TemporalClipConfig.model_type, TemporalClipConfig, exist_ok=True)
AutoModel.register(TemporalClipConfig, TemporalClipModel, exist_ok=True)
register_tower(
    TemporalClipConfig.model_type, TowerSpec(prefix=lambda config: 1, class_token=True, plain=True, ahead=_ahead)
)
