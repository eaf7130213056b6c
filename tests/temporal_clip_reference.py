"""Video-LLaVA's video tower as a double loop over frames and places, written from what is published of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


class Slow:
    """A CLIP, with or without attention over time, from its tensors.

    Args:
        state: under transformers' names.
        heads: of its attention.
        activate: of its MLP.
    """

    def __init__(self, state: dict[str, Tensor], heads: int, activate: Callable[[Tensor], Tensor]) -> None:
        self.state = {key: value.detach().float() for key, value in state.items()}
        self.heads, self.activate = heads, activate

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def attend(self, name: str, x: Tensor) -> Tensor:
        """Head by head. [S, C] -> [S, C]"""
        q, k, v = (self.linear(f"{name}.{part}_proj", x) for part in "qkv")
        wide, heads = x.shape[1] // self.heads, []
        for head in range(self.heads):
            part = slice(head * wide, (head + 1) * wide)
            heads.append(((q[:, part] @ k[:, part].T) * wide**-0.5).softmax(-1) @ v[:, part])
        return self.linear(f"{name}.out_proj", torch.cat(heads, -1))

    def over_time(self, block: int, x: Tensor) -> Tensor:
        """The frames of one video, place by place. [T, S, C] -> [T, S, C]"""
        stem, out = f"encoder.layers.{block}.", torch.empty_like(x)
        if f"{stem}temporal_embedding" not in self.state:
            return x
        added = self.state[f"{stem}temporal_embedding"][0]
        for place in range(x.shape[1]):
            row = torch.stack([x[frame, place] + added[frame] for frame in range(len(x))])
            out[:, place] = row + self.attend(f"{stem}temporal_attn", self.norm(f"{stem}temporal_layer_norm1", row))
        return out

    def see(self, video: Tensor, blocks: int) -> Tensor:
        """So many blocks. [T, 3, h, w] -> [T, S, C]"""
        s = self.state
        patches = s["embeddings.patch_embedding.weight"]
        x = F.conv2d(video, patches, stride=patches.shape[-1]).flatten(2).transpose(1, 2)
        first = s["embeddings.class_embedding"].expand(len(x), 1, -1)
        x = self.norm("pre_layrnorm", torch.cat([first, x], 1) + s["embeddings.position_embedding.weight"])
        for block in range(blocks):
            stem, x = f"encoder.layers.{block}.", self.over_time(block, x)
            for frame in range(len(x)):
                x[frame] += self.attend(f"{stem}self_attn", self.norm(f"{stem}layer_norm1", x[frame]))
                inner = self.linear(f"{stem}mlp.fc1", self.norm(f"{stem}layer_norm2", x[frame]))
                x[frame] += self.linear(f"{stem}mlp.fc2", self.activate(inner))
        return x
