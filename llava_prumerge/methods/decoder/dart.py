"""DART: what resembles a few pivot tokens is duplication and is dropped; importance is not asked for.

Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, Wen et al., EMNLP 2025 (arXiv
2502.11494). As in the authors' code: pivots are the tokens with the largest L1 norm of the previous layer's rotated keys, four among the
image tokens and four among the text after the image; one pivot after the other keeps the image tokens least like it
among those not yet taken. Likeness is the cosine of the layer's input after the model's final norm; pivots take turns
in the order in which a Python set of their places lists them; each keeps an eighth of the share, rounded down, and the
image's pivots stay on top of that, so that the release's "128" keeps 132. `states`, `turns` and `count` reach what one
would expect instead: the input as it is, image first by falling norm, and the share exactly. A budget is met exactly in
any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.methods.base import DecoderShape, DecoderTokens
from llava_prumerge.methods.pruners import BudgetSettings, ScheduledPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import above, at_least, fraction, setting
from llava_prumerge.ops.select import select, top_mask
from llava_prumerge.ops.token_schedule import constant, down, up


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
        "share of each sequence's visual tokens that the pivots choose, see `count`; without meaning where there is a "
        "budget",
        fraction(),
        source="ours; the paper has 64 of 576 and others",
        formerly="keep",
    )
    pivots: int = setting(
        4, "image tokens that are pivots, at most as many as stay", at_least(1), source="released code"
    )
    text_pivots: int = setting(4, "tokens of the question that are pivots", at_least(0), source="released code")
    norm: float = setting(1.0, "p of the keys' norm", above(0), source="released code")
    states: Literal["normed", "plain"] = setting(
        "normed",
        "likeness is measured on the layer's input after the model's final norm, or as it is",
        source="released code",
    )
    turns: Literal["set", "norm"] = setting(
        "set",
        "order in which pivots choose: that of a Python set of their places, or image first, by falling norm",
        source="released code",
    )
    count: Literal["released", "exact"] = setting(
        "released",
        "released keeps the image's pivots beside the share, of which each pivot takes an equal part rounded down; "
        "exact keeps the share, pivots included, rounded up",
        source="released code",
    )


@register("dart")
class Dart(ScheduledPruner):
    """Keep pivots and the visual tokens least like them, from one layer on."""

    paper = "DART, Wen et al., EMNLP 2025 (arXiv 2502.11494)"
    ranks = True
    settings: DartSettings

    def __init__(self, settings: DartSettings, shape: DecoderShape) -> None:
        super().__init__(settings, shape, (settings.layer,), constant, settings.keep_ratio)

    def rounding(self, share: float) -> int:
        """See `count` of the settings."""
        if self.settings.count == "exact":
            return up(share)
        pivots = self.settings.pivots + self.settings.text_pivots
        return self.settings.pivots + pivots * (down(share) // pivots)

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
        """Cosine of every token to each pivot, in the order of their turns, and which pivots there are.

        Returns:
            [B, pivots, L] and [B, pivots].
        """
        layout = tokens.layout
        hidden = tokens.normed() if self.settings.states == "normed" else tokens.hidden
        states = F.normalize(hidden.float(), dim=-1)
        asking = layout.question_mask() & ~layout.is_image
        groups = ((first, self.settings.pivots), (asking, self.settings.text_pivots))
        index, real = [], []
        for among, number in groups:
            number = min(number, norms.shape[1])
            best = norms.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :number]
            index.append(best)
            real.append(among.gather(1, best))
        pivots, held = torch.cat(index, dim=1), torch.cat(real, dim=1)
        if self.settings.turns == "set":
            order = set_order(pivots, held, layout.position_ids)
            pivots, held = pivots.gather(1, order), held.gather(1, order)
        return select(states, pivots) @ states.transpose(1, 2), held


def set_order(pivots: Tensor, real: Tensor, positions: Tensor) -> Tensor:
    """The order in which a Python set lists the pivots' positions in their sequence.

    Args:
        pivots: [B, R] indices.
        real: [B, R] which of them there are.
        positions: [B, L].

    Returns:
        [B, R], the real ones first. Costs one host synchronisation.
    """
    places = positions.gather(1, pivots)
    rows = []
    for row, held in zip(places.tolist(), real.tolist(), strict=True):
        at = {place: number for number, place in enumerate(row) if held[number]}
        first = [at[place] for place in set(at)]
        rows.append([*first, *(number for number in range(len(row)) if number not in first)])
    return torch.tensor(rows, dtype=torch.int64, device=pivots.device).reshape(pivots.shape)
