"""Rank schedule: a rate per layer, and the tokens the prompt attends to most; the pruner of G-Search and P-Sigmoid.

Accelerating Multimodal LLMs by Searching Optimal Vision Token Reduction, Zhao et al., CVPR 2025 (arXiv 2412.00556). No
code was published and the paper's body could not be read, so this is our reading: the abstract (token rankings agree
between all layers but the first, the number of essential tokens does not grow with depth) and second-hand notes (tokens
are ranked at each layer by the attention scores of the previous one, a keeping rate per layer) give the rule. Doubtful
and therefore fields: which rows of the prompt rank (`rows`), and the sigmoid's form, which is that of a later paper
(VisPCO, ACL 2026): rate(l) = 1 + (r - 1) * sigmoid(gamma * (l - k)). G-Search's outcome is a list of rates. Both
searches are commands of their own and write the settings of this pruner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.pruners import BudgetSettings, PromptRankedPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import Rule, fraction, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.token_schedule import Curve, falling_sigmoid, raised

R, GAMMA, K = 0.05, 1.0, 2.0
"""Of the sigmoid where nothing is given: about an eighth of the tokens of 32 layers, as in the paper's headline."""


@dataclass(frozen=True, kw_only=True)
class RankScheduleSettings(BudgetSettings):
    """A budget is met exactly: by moving the sigmoid (its k), or by raising given rates to a power."""

    rates: tuple[float, ...] | None = setting(
        None,
        "one share in [0, 1] per layer, never rising; that of the layers before `first` is 1. In place of r, gamma and k",
        source="what G-Search finds",
    )
    r: float | None = setting(
        None, f"what the sigmoid falls to, the final rate; null: {R}", fraction(zero=True), source="our reading"
    )
    gamma: float | None = setting(
        None,
        f"how steeply, per unit of depth; null: {GAMMA:g} per layer",
        Rule("a number above 0", lambda value: value > 0 and math.isfinite(value)),
        source="our reading",
    )
    k: float | None = setting(
        None,
        f"where it is half way down, in units of depth; null: {K:g} layers. Not with a budget, which decides it",
        Rule("a number", math.isfinite),
        source="our reading",
    )
    depth: Literal["layers", "relative"] = setting(
        "layers",
        "layers counts a layer's depth as its number, relative as its number over that of all layers, so that one "
        "setting serves models of any depth (gamma then as many times larger)",
        source="the formula",
    )
    first: int = setting(
        1,
        "tokens are dropped before this layer and all later ones; 1 is the first that has a layer before it to rank by",
        source="our reading",
    )
    rows: Literal["last", "text"] = setting(
        "last",
        "last ranks by the prompt's last token, text by the mean over all its text tokens that see an image",
        source="our reading",
    )

    def check(self) -> None:
        sigmoid = {"r": self.r, "gamma": self.gamma, "k": self.k}
        if self.rates is not None and any(value is not None for value in sigmoid.values()):
            told = ", ".join(f"{key}={value}" for key, value in sigmoid.items())
            raise ReductionError(f"give rates, or {told}, not both")
        if self.budget is not None and self.k is not None:
            raise ReductionError(f"a budget of {self.budget:g} decides k; leave out k={self.k:g} (k=null in a command)")


@register("rank_schedule")
class RankSchedule(PromptRankedPruner):
    """Keep a given share of the visual tokens in each layer, best first."""

    paper = "G-Search and P-Sigmoid, Zhao et al., CVPR 2025 (arXiv 2412.00556), our reading"
    settings: RankScheduleSettings

    def __init__(self, settings: RankScheduleSettings, shape: DecoderShape) -> None:
        if not 1 <= settings.first < shape.layers:
            accepted = f"one of the layers 1 to {shape.layers - 1}"
            raise ReductionError(f"{self.name}: first {settings.first!r} is not {accepted}")
        layers = range(settings.first, shape.layers)
        if settings.rates is None:
            curve, free, bounds = self._sigmoid(settings, layers, shape)
        else:
            rates = self._checked(settings.rates, settings.first, shape)
            curve, free, bounds = partial(raised, rates=rates), 0.5, (0.0, 1.0)
        super().__init__(settings, shape, layers, curve, free, bounds)
        self.rows = settings.rows

    def _checked(self, rates: Sequence[float], first: int, shape: DecoderShape) -> tuple[float, ...]:
        """The rates of the layers before which tokens are dropped."""
        if len(rates) != shape.layers:
            raise ReductionError(f"{self.name}: {len(rates)} rates for {shape.layers} layers; give one per layer")
        wrong = [rate for rate in rates if not 0 <= rate <= 1]
        if wrong:
            raise ReductionError(f"{self.name}: rate {wrong[0]!r} is not in [0, 1]")
        rising = next((at for at in range(1, len(rates)) if rates[at] > rates[at - 1]), None)
        if rising is not None:
            raise ReductionError(
                f"{self.name}: the rate rises from {rates[rising - 1]} to {rates[rising]} at layer {rising}; "
                "dropped tokens do not return"
            )
        if any(rate != 1 for rate in rates[:first]):
            raise ReductionError(
                f"{self.name}: the rates of the layers before layer {first} must be 1, not {list(rates[:first])}"
            )
        return tuple(rates[first:])

    @staticmethod
    def _sigmoid(
        settings: RankScheduleSettings, layers: range, shape: DecoderShape
    ) -> tuple[Curve, float, tuple[float, float]]:
        """The sigmoid as a curve whose free number is k, that k, and where a budget's k is searched."""
        unit = 1.0 if settings.depth == "layers" else 1.0 / shape.layers
        floor = R if settings.r is None else settings.r
        steepness = GAMMA / unit if settings.gamma is None else settings.gamma
        middle = K * unit if settings.k is None else settings.k  # of no effect where there is a budget
        places = tuple(layer * unit for layer in layers)
        reach = 40 / steepness  # beyond, the sigmoid has arrived to the last digit
        curve = partial(falling_sigmoid, places=places, floor=floor, steepness=steepness)
        return curve, middle, (places[0] - reach, places[-1] + reach)
