"""What the whole model, its vision side and its decoder tell each other during one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava_prumerge.ops.layout import TokenLayout, shift_labels


@dataclass
class ForwardPass:
    """Rides through the stock `forward`s in their keyword arguments.

    Attributes:
        labels: [B, L] as the caller gave them.
        is_image: [B, L] bool, a visual placeholder.
        source: [B, L] the column whose position a token takes, -1 where a reducer left a placeholder empty; None where no
            reducer acted.
        origin: [B, L] raster index of the unit a visual token stands for, within its tile; -1 for none.
        images: [B] images of each sequence.
        kept: [N] tokens that each image leaves the reducer with.
        tiles: how many parts the tower saw all images in.
        positions: what a reducer says of positions: "contiguous" or "original".
        reduces: a method acts in this pass; False where it only carries `touch`.
        touch: zero, by way of vision modules that have nothing else to do in this pass.
        layout: the final one, told by the decoder.
        visual: [B, layers] visual tokens that each decoder layer saw, told by the decoder.
    """

    labels: Tensor | None = None
    is_image: Tensor | None = None
    source: Tensor | None = None
    origin: Tensor | None = None
    images: Tensor | None = None
    kept: Tensor | None = None
    tiles: int = 0
    positions: str = "contiguous"
    reduces: bool = True
    touch: Tensor | None = None
    layout: TokenLayout | None = None
    visual: Tensor | None = None

    def begin(self, key_mask: Tensor, start: Tensor | int) -> TokenLayout:
        """The layout of the tokens passed in, unreduced, each at its position.

        Args:
            key_mask: [B, L] bool.
            start: position of the first token, [B, 1] or a number.
        """
        blank = torch.zeros_like(key_mask)
        length = key_mask.shape[1]
        layout = TokenLayout(
            is_image=blank if self.is_image is None else self.is_image & key_mask,
            key_mask=key_mask,
            position_ids=torch.zeros_like(key_mask, dtype=torch.long),
            origin=torch.full_like(key_mask, -1, dtype=torch.long) if self.origin is None else self.origin,
            shift_labels=None if self.labels is None else shift_labels(self.labels),
            images=key_mask.new_zeros(len(key_mask), dtype=torch.long) if self.images is None else self.images,
            columns=torch.arange(length, device=key_mask.device).expand_as(key_mask),
        )
        layout = layout.renumbered(start)
        if self.source is not None and self.positions == "original":
            moved = layout.position_ids.gather(1, self.source.clamp(min=0))
            layout = replace(layout, position_ids=moved)
        return layout


def step_layout(position: Tensor, attention_mask: Tensor | None) -> TokenLayout:
    """The layout of a decoding step: one token of text in each row, at its position [B].

    It is what `ForwardPass.begin` would find out in a dozen small calls, each of them paid per token.
    """
    places = position[:, None]  # [B, 1]
    blank = torch.zeros_like(places, dtype=torch.bool)
    key_mask = ~blank if attention_mask is None else attention_mask[:, -1:].bool()
    return TokenLayout(is_image=blank, key_mask=key_mask, position_ids=places, origin=torch.full_like(places, -1))
