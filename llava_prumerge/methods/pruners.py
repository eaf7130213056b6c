"""What decoder pruners share: whole numbers of tokens per layer, from rates or a budget, and the best of them by a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.contract import Merged
from llava_prumerge.methods.cost import Course
from llava_prumerge.methods.settings import Settings, above, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.select import prompt_attention
from llava_prumerge.ops.token_schedule import Curve, TokenSchedule, up


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(Settings):
    """Of pruners that can be told what they may cost."""

    budget: float | None = setting(
        None,
        "visual tokens per image averaged over all decoder layers, the full ones included; null: the method's own rates",
        above(0, "a number of tokens above 0"),
    )


@dataclass(frozen=True, kw_only=True)
class CountSettings(BudgetSettings):
    """Of pruners whose authors' code takes numbers of tokens, one for each layer before which some are dropped."""

    counts: tuple[int, ...] | None = setting(
        None,
        "visual tokens of each image that stay, one number per layer in `layers`, never rising; null: the method's share",
        source="released code",
    )

    def check(self) -> None:
        if self.counts is not None and self.budget is not None:
            raise ReductionError(f"give counts={list(self.counts)} or budget={self.budget:g}, not both")
        if self.counts is not None and (
            min(self.counts, default=0) < 1 or sorted(self.counts, reverse=True) != [*self.counts]
        ):
            raise ReductionError(f"counts {list(self.counts)} must be numbers of tokens of at least 1 that never rise")


class ScheduledPruner(DecoderPruner):
    """A pruner that keeps the tokens with the highest scores, as many as a schedule says.

    Args:
        settings: of the method.
        shape: of the language model.
        layers: before which it acts.
        curve, free, bounds, fixed: of the schedule, see `ops.token_schedule.TokenSchedule`.
        schedule: makes the schedule.
    """

    settings: BudgetSettings

    def __init__(
        self,
        settings: BudgetSettings,
        shape: DecoderShape,
        layers: Iterable[int],
        curve: Curve,
        free: float,
        bounds: tuple[float, float] = (0.0, 1.0),
        fixed: Sequence[int] | None = None,
        schedule: Callable[..., TokenSchedule] = TokenSchedule,
    ) -> None:
        super().__init__(settings, shape, layers)
        if fixed is not None and len(fixed) != len(self.layers):
            raise ReductionError(f"{self.name}: counts has {len(fixed)} numbers for layers {list(self.layers)}")
        patches = None if shape.reduced else shape.patches
        self.schedule = schedule(
            self.name, shape.layers, self.layers, curve, free, settings.budget, bounds, patches, self.rounding, fixed
        )

    def rounding(self, share: float) -> int:
        """A share of the visual tokens in whole tokens: up, unless the authors' code does otherwise."""
        return up(share)

    @torch.no_grad()
    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | Merged | None:
        """-> [B, L] bool, or None where nobody loses any."""
        counts = self.schedule.counts(layer, tokens.layout, always=self.training)
        if counts is None:
            return None
        return self.schedule.best(tokens.layout, self.scores(layer, tokens, counts), counts)

    def scores(self, layer: int, tokens: DecoderTokens, counts: Tensor) -> Tensor:
        """What is best, of which `counts` [B] visual tokens stay. -> [B, L]; text and padding do not matter"""
        raise NotImplementedError

    def course(self, present: int) -> Course:
        """The schedule's whole numbers."""
        source = "its settings" if self.schedule.budget is None else "its budget"
        return Course(self.schedule.layer_counts(present), source)


class PromptRankedPruner(ScheduledPruner):
    """A pruner that ranks visual tokens by the attention they receive from the prompt, averaged over heads.

    Attributes:
        rows: of the prompt that rank, "last" or "text", see `ops.select.prompt_attention`.
    """

    ranks = True
    rows: Literal["last", "text"] = "last"

    def scores(self, layer: int, tokens: DecoderTokens, counts: Tensor) -> Tensor:
        """Attention in the layer before, or in this one where the method ranks ahead. -> [B, L]"""
        asked = layer if self.ranks_ahead else layer - 1
        return prompt_attention(tokens.attention, tokens.layout, asked, self.rows)
