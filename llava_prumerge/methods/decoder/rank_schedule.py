"""Rank schedule: a rate per layer, and the tokens the prompt attends to most; the pruner of G-Search and P-Sigmoid.

Accelerating Multimodal LLMs by Searching Optimal Vision Token Reduction, Zhao et al., CVPR 2025 (arXiv 2412.00556). No
code was published. Before each layer the tokens are sorted by the attention scores of the layer before, and the best
rate(l) x N stay, N the number that the image came with (Fig. 2). G-Search finds one rate per layer; its curve for
LLaVA-1.5-7B is Fig. 1c, and `configs/method/g_search.yaml` holds it. P-Sigmoid's form is the dashed curve of that
figure, which a height x sigmoid(-slope x (l - centre)) with the first reduction before layer 3 meets to the figure's
accuracy: height 0.756, slope 0.226, centre 12.2 of 32 layers. The paper names one searched parameter, most likely the
height; our search tunes height and slope, and the budget decides the centre. `form: floor` is VisPCO's (ACL 2026),
rate(l) = 1 + (r - 1) x sigmoid(gamma x (l - k)). Doubtful, and therefore a field: which rows of the prompt rank.
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
from llava_prumerge.methods.search_target import SearchKind, SearchTarget
from llava_prumerge.methods.settings import above, at_least, fraction, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.token_schedule import Curve, falling_sigmoid, raised, sigmoid_of_height

HEIGHT, SLOPE, CENTRE, FIRST, DEPTH = 0.756, 0.226, 12.2, 3, 32
"""Of the paper's Fig. 1c, per layer of 32."""
R, GAMMA, K = 0.05, 1.0, 2.0
"""Of the form with a floor where nothing is given: about an eighth of the tokens of 32 layers."""
POSITIVE = above(0)

Searched = tuple[Curve, float, tuple[float, float]]
"""A curve, its free number where there is no budget, and where a budget's is searched."""


@dataclass(frozen=True, kw_only=True)
class RankScheduleSettings(BudgetSettings):
    """A budget is met exactly: by moving the sigmoid (its centre or k), or by raising given rates to a power."""

    rates: tuple[float, ...] | None = setting(
        None,
        "one share in [0, 1] per layer, never rising; that of the layers before `first` is 1. In place of a sigmoid",
        source="what G-Search finds",
    )
    scaled: bool = setting(
        False, "rates of a model of another depth are read at the same fractions of the depth", source="ours"
    )
    form: Literal["height", "floor"] | None = setting(
        None,
        "height is the paper's sigmoid, floor that of VisPCO; null: floor where r, gamma, k or depth is given",
        source="paper, Fig. 1c",
    )
    height: float | None = setting(
        None, f"what the paper's sigmoid falls from; null: {HEIGHT}", fraction(), source="paper, Fig. 1c"
    )
    slope: float | None = setting(
        None, f"how steeply, per layer; null: {SLOPE} in {DEPTH} layers", POSITIVE, source="paper, Fig. 1c"
    )
    centre: float | None = setting(
        None,
        f"the layer where it is half way down; null: {CENTRE} of {DEPTH}. Not with a budget, which decides it",
        source="paper, Fig. 1c",
    )
    r: float | None = setting(
        None, f"floor: what the sigmoid falls to, the final rate; null: {R}", fraction(zero=True), source="VisPCO"
    )
    gamma: float | None = setting(
        None, f"floor: how steeply, per unit of depth; null: {GAMMA:g} per layer", POSITIVE, source="VisPCO"
    )
    k: float | None = setting(
        None,
        f"floor: where it is half way down, in units of depth; null: {K:g} layers. Not with a budget, which decides it",
        source="VisPCO",
    )
    depth: Literal["layers", "relative"] | None = setting(
        None,
        "floor: layers counts a layer's depth as its number, relative as its number over that of all layers, so that "
        "one setting serves models of any depth (gamma then as many times larger); null: layers",
        source="ours",
    )
    first: int | None = setting(
        None,
        "tokens are dropped before this layer and all later ones, at least 1; null: 3 of 32 at the same fraction for "
        "the paper's sigmoid, 1 for the other, the first rate below 1 of given rates",
        at_least(1),
        source="paper, Fig. 1c",
    )
    rows: Literal["last", "text"] = setting(
        "last",
        "last ranks by the prompt's last token, text by the mean over all its text tokens that see an image",
        source="our reading",
    )

    @property
    def kind(self) -> str:
        """Which curve: "rates", "height" or "floor"."""
        if self.rates is not None:
            return "rates"
        return self.form or ("floor" if self._given("r", "gamma", "k", "depth") else "height")

    def _given(self, *names: str) -> list[str]:
        """Those of some settings that are not null, as they would be written."""
        return [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None]

    def check(self) -> None:
        others = {
            "rates": ("height", "slope", "centre", "r", "gamma", "k"),
            "height": ("r", "gamma", "k", "depth"),
            "floor": ("height", "slope", "centre"),
        }[self.kind]
        if given := self._given(*others):
            raise ReductionError(f"{', '.join(given)} means nothing beside {self._named()}; give one of them")
        if self.budget is not None and (given := self._given("centre", "k")):
            name = given[0].split("=")[0]
            raise ReductionError(f"a budget of {self.budget:g} decides {name}; leave out {given[0]} ({name}=null)")
        if self.scaled and self.rates is None:
            raise ReductionError("scaled is about rates, and none are given")

    def _named(self) -> str:
        return "rates" if self.kind == "rates" else f"the sigmoid of form {self.kind}"


@register("rank_schedule")
class RankSchedule(PromptRankedPruner):
    """Keep a given share of the visual tokens in each layer, best first."""

    paper = "G-Search and P-Sigmoid, Zhao et al., CVPR 2025 (arXiv 2412.00556), our reading"
    search_targets = (
        SearchTarget(
            SearchKind.RATES,
            lambda rates, first, rows: {"rates": rates, "first": first, "rows": rows},
            "G-Search (Zhao et al., CVPR 2025, arXiv 2412.00556)",
        ),
        SearchTarget(
            SearchKind.SIGMOID,
            lambda height, slope, rows, budget: {
                "form": "height",
                "height": height,
                "slope": slope,
                "rows": rows,
                "budget": budget,
            },
            "P-Sigmoid (Zhao et al., CVPR 2025, arXiv 2412.00556)",
        ),
    )
    settings: RankScheduleSettings

    def __init__(self, settings: RankScheduleSettings, shape: DecoderShape) -> None:
        rates = None if settings.rates is None else self._stretched(settings, shape.layers)
        first = self._first(settings, rates, shape.layers)
        if not 1 <= first < shape.layers:
            raise ReductionError(f"{self.name}: first {first!r} is not one of the layers 1 to {shape.layers - 1}")
        layers = range(first, shape.layers)
        curve: Curve
        if rates is not None:
            checked = self._checked(rates, first, shape)
            curve, free, bounds = partial(raised, rates=checked), 0.5, (0.0, 1.0)
        elif settings.kind == "height":
            curve, free, bounds = self._of_height(settings, layers, shape)
        else:
            curve, free, bounds = self._with_floor(settings, layers, shape)
        super().__init__(settings, shape, layers, curve, free, bounds)
        self.rows = settings.rows

    @staticmethod
    def _stretched(settings: RankScheduleSettings, layers: int) -> tuple[float, ...]:
        """The rates, read at the same fractions of another depth where that is wanted."""
        rates = settings.rates or ()
        if not settings.scaled or not rates:
            return rates
        return tuple(rates[min(len(rates) - 1, math.floor(at * len(rates) / layers + 0.5))] for at in range(layers))

    @staticmethod
    def _first(settings: RankScheduleSettings, rates: Sequence[float] | None, layers: int) -> int:
        """The first layer before which tokens are dropped."""
        if settings.first is not None:
            return settings.first
        if rates is not None:
            return next((at for at, rate in enumerate(rates) if rate < 1 and at), 1)
        return max(1, round(FIRST * layers / DEPTH)) if settings.kind == "height" else 1

    def _checked(self, rates: Sequence[float], first: int, shape: DecoderShape) -> tuple[float, ...]:
        """The rates of the layers before which tokens are dropped."""
        if len(rates) != shape.layers:
            raise ReductionError(
                f"{self.name}: {len(rates)} rates for {shape.layers} layers; give one per layer, or scaled=true"
            )
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
    def _of_height(settings: RankScheduleSettings, layers: range, shape: DecoderShape) -> Searched:
        """The paper's sigmoid; its free number is the centre. Nothing given: Fig. 1c at the same fractions."""
        scale = shape.layers / DEPTH
        height = HEIGHT if settings.height is None else settings.height
        slope = SLOPE / scale if settings.slope is None else settings.slope
        centre = CENTRE * scale if settings.centre is None else settings.centre
        places = tuple(map(float, layers))
        reach = 40 / slope  # beyond, the sigmoid has arrived to the last digit
        curve = partial(sigmoid_of_height, places=places, height=height, slope=slope)
        return curve, centre, (places[0] - reach, places[-1] + reach)

    @staticmethod
    def _with_floor(settings: RankScheduleSettings, layers: range, shape: DecoderShape) -> Searched:
        """VisPCO's sigmoid; its free number is k."""
        unit = 1.0 / shape.layers if settings.depth == "relative" else 1.0
        floor = R if settings.r is None else settings.r
        steepness = GAMMA / unit if settings.gamma is None else settings.gamma
        middle = K * unit if settings.k is None else settings.k  # of no effect where there is a budget
        places = tuple(layer * unit for layer in layers)
        reach = 40 / steepness
        curve = partial(falling_sigmoid, places=places, floor=floor, steepness=steepness)
        return curve, middle, (places[0] - reach, places[-1] + reach)
