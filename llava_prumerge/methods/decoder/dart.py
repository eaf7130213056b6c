"""DART: what resembles a few pivot tokens is duplication and is dropped; importance is not asked for.

Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, Wen et al., EMNLP 2025 (arXiv
    2502.11494). As in
the authors' code: pivots are the tokens with the largest L1 norm of the previous layer's rotated keys, four among the
image tokens and four among the text after the image; one pivot after the other keeps the image tokens least like it
(cosine of the layer's input) among those not yet taken. Departures: the budget is met exactly (the code keeps pivots on
top of rounded shares), and pivots take turns image first, in order of their norm (the code's order is that of a Python
set).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.merge import select
from llava_prumerge.ops.select import top_mask
from llava_prumerge.ops.token_schedule import TokenSchedule, constant


@register("dart")
class Dart(DecoderPruner):
    """Keep pivots and the visual tokens least like them, from one layer on.

    Args:
        shape: of the language model.
        layer: K, the first layer that runs on fewer tokens (paper: 2); keys are those of the layer before.
        keep: share of each sequence's visual tokens that stays, pivots included (paper: 64 of 576 and others).
        budget: visual tokens per image averaged over all decoder layers, the K full ones included, see `ops.token_schedule`;
            None uses `keep`.
        pivots: image tokens that are pivots (code: 4); at most as many as stay, at least one.
        text_pivots: tokens of the question that are pivots (code: 4). With 0 the choice does not depend on the
            question, and a kept cache serves later ones.
        norm: p of the keys' norm (code: 1).
    """

    def __init__(
        self,
        shape: DecoderShape,
        layer: int = 2,
        keep: float = 0.25,
        budget: float | None = None,
        pivots: int = 4,
        text_pivots: int = 4,
        norm: float = 1.0,
    ) -> None:
        if layer < 1:
            raise ReductionError(f"{self.name}: layer {layer} has no layer before it to take keys from; take 1 or more")
        if not 0 < keep <= 1:
            raise ReductionError(f"{self.name}: keep {keep!r} is not in (0, 1]")
        for key, value, least in (("pivots", pivots, 1), ("text_pivots", text_pivots, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ReductionError(f"{self.name}: {key} {value!r} is not a whole number of at least {least}")
        if not norm > 0:
            raise ReductionError(f"{self.name}: norm {norm!r} is not above 0")
        super().__init__(shape, (layer,))
        self.keep, self.budget, self.pivots, self.text_pivots, self.norm = keep, budget, pivots, text_pivots, norm
        self.later_turns = "none" if text_pivots else "text"
        patches = None if shape.reduced else shape.patches
        self.schedule = TokenSchedule(self.name, shape.layers, self.layers, constant, keep, budget, patches=patches)

    @torch.no_grad()
    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | None:
        """-> [B, L] bool."""
        layout = tokens.layout
        counts = self.schedule.counts(layer, layout, always=self.training)
        if counts is None:
            return None
        norms = self._norms(tokens.keys(layer - 1))  # [B, L]
        first = (
            top_mask(norms.masked_fill(~layout.is_image, -torch.inf), counts.clamp(max=self.pivots)) & layout.is_image
        )
        taken, wanted = first, counts - first.sum(dim=1)
        likeness, real = self._likeness(tokens, norms, first)  # [B, pivots, L], [B, pivots]
        turns = real.sum(dim=1)
        for pivot in range(real.shape[1]):
            before = real[:, :pivot].sum(dim=1)
            share = ((wanted * (before + 1)) // turns.clamp(min=1) - (wanted * before) // turns.clamp(min=1)) * real[
                :, pivot
            ]
            unlike = (-likeness[:, pivot]).masked_fill(taken | ~layout.is_image, -torch.inf)
            taken = taken | (top_mask(unlike, share) & layout.is_image)
        return self.schedule.best(layout, torch.where(norms.isfinite(), taken.float(), norms), counts)

    def _norms(self, keys: Tensor) -> Tensor:
        """Norm of each token's keys, all heads together. [B, H, L, D/H] -> [B, L]"""
        if self.norm == 1:  # a plain sum is five times as fast as torch's norm
            return keys.float().abs().sum(dim=-1).sum(dim=1)
        return keys.float().norm(p=self.norm, dim=-1).norm(p=self.norm, dim=1)

    def _likeness(self, tokens: DecoderTokens, norms: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine of every token to each pivot, and which pivots there are: image first, by falling norm.

        Returns:
            [B, pivots, L] and [B, pivots].
        """
        layout, states = tokens.layout, F.normalize(tokens.hidden.float(), dim=-1)
        index, real = [], []
        for among, number in ((first, self.pivots), (layout.question_mask() & ~layout.is_image, self.text_pivots)):
            number = min(number, norms.shape[1])
            best = norms.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :number]
            index.append(best)
            real.append(among.gather(1, best))
        return select(states, torch.cat(index, dim=1)) @ states.transpose(1, 2), torch.cat(real, dim=1)

    def extra_repr(self) -> str:
        return (
            f"layer={self.layers[0]}, keep={self.keep}, budget={self.budget}, pivots={self.pivots}, "
            f"text_pivots={self.text_pivots}, norm={self.norm}"
        )
