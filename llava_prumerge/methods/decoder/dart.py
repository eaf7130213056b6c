"""DART: what resembles a few pivot tokens is duplication and is dropped; importance is not asked for.

Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, Wen et al., EMNLP 2025 (arXiv
2502.11494). As in the authors' code: pivots are the tokens with the largest L1 norm of the previous layer's rotated keys, four among the
image tokens and four among the text after the image; one pivot after the other keeps the image tokens least like it
(cosine of the layer's input) among those not yet taken. Departures: the budget is met exactly (the code keeps pivots on
top of rounded shares), and pivots take turns image first, in order of their norm (the code's order is that of a Python
set).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.methods.base import DecoderShape, DecoderTokens
from llava_prumerge.methods.pruners import BudgetSettings, ScheduledPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import above, at_least, fraction, setting
from llava_prumerge.ops.merge import select
from llava_prumerge.ops.select import top_mask
from llava_prumerge.ops.token_schedule import constant


@dataclass(frozen=True, kw_only=True)
class DartSettings(BudgetSettings):
    """One drop. With `text_pivots: 0` the choice does not depend on the question, and a kept cache serves later ones."""

    layer: int = setting(
        2,
        "K, the first layer that runs on fewer tokens; keys are those of the layer before",
        at_least(1, "a layer of at least 1, which has one before it to take keys from"),
        source="paper",
    )
    keep_ratio: float = setting(
        0.25,
        "share of each sequence's visual tokens that stays, pivots included, rounded up; without meaning where there is "
        "a budget",
        fraction(),
        source="ours; the paper has 64 of 576 and others",
        formerly="keep",
    )
    pivots: int = setting(
        4, "image tokens that are pivots, at most as many as stay", at_least(1), source="released code"
    )
    text_pivots: int = setting(4, "tokens of the question that are pivots", at_least(0), source="released code")
    norm: float = setting(1.0, "p of the keys' norm", above(0), source="released code")


@register("dart")
class Dart(ScheduledPruner):
    """Keep pivots and the visual tokens least like them, from one layer on."""

    paper = "DART, Wen et al., EMNLP 2025 (arXiv 2502.11494)"
    ranks = True
    settings: DartSettings

    def __init__(self, settings: DartSettings, shape: DecoderShape) -> None:
        super().__init__(settings, shape, (settings.layer,), constant, settings.keep_ratio)

    @property
    def later_turns(self) -> str:
        """See the settings."""
        return "none" if self.settings.text_pivots else "text"

    def scores(self, layer: int, tokens: DecoderTokens, counts: Tensor) -> Tensor:
        """1 for what stays and 0 for what goes; norms that are not finite go on. -> [B, L]"""
        layout, pivots = tokens.layout, self.settings.pivots
        norms = self._norms(tokens.keys(layer - 1))  # [B, L]
        first = top_mask(norms.masked_fill(~layout.is_image, -torch.inf), counts.clamp(max=pivots)) & layout.is_image
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
        return torch.where(norms.isfinite(), taken.float(), norms)

    def _norms(self, keys: Tensor) -> Tensor:
        """Norm of each token's keys, all heads together. [B, H, L, D/H] -> [B, L]"""
        if self.settings.norm == 1:  # a plain sum is five times as fast as torch's norm
            return keys.float().abs().sum(dim=-1).sum(dim=1)
        return keys.float().norm(p=self.settings.norm, dim=-1).norm(p=self.settings.norm, dim=1)

    def _likeness(self, tokens: DecoderTokens, norms: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine of every token to each pivot, and which pivots there are: image first, by falling norm.

        Returns:
            [B, pivots, L] and [B, pivots].
        """
        layout, states = tokens.layout, F.normalize(tokens.hidden.float(), dim=-1)
        asking = layout.question_mask() & ~layout.is_image
        groups = ((first, self.settings.pivots), (asking, self.settings.text_pivots))
        index, real = [], []
        for among, number in groups:
            number = min(number, norms.shape[1])
            best = norms.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :number]
            index.append(best)
            real.append(among.gather(1, best))
        return select(states, torch.cat(index, dim=1)) @ states.transpose(1, 2), torch.cat(real, dim=1)
