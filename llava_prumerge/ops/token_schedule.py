"""How many visual tokens each decoder layer gets: by rates, or so that their mean over all layers meets a budget.

All methods that drop tokens inside the decoder count a budget alike, in *equivalent* tokens: visual tokens of one
image, added up over all decoder layers and divided by their number. A method that keeps every token costs P, one
without visual tokens 0. With one drop of P tokens to n before layer K of L that is n = (budget * L - K * P) / (L - K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout
from llava_prumerge.ops.select import top_mask

Curve = Callable[[float], Sequence[float]]
"""A free number -> for each drop, the share of a sequence's visual tokens that stays from there on."""

Rounding = Callable[[Any], int]
"""A share of a number of tokens -> whole tokens."""

HALVINGS = 60
"""Of the interval a budget's free number is searched in: to the last digit of a float."""
SLACK = 1e-9
"""Rates are floats: 0.1 * 30 is three tokens, not four."""


def up(share: float) -> int:
    """The project's rule for shares: a part of a token is a token."""
    return math.ceil(share - SLACK * max(1.0, share))


def down(share: float) -> int:
    """int() of the released codes, without the error of a float product."""
    return math.floor(share + SLACK * max(1.0, share))


def nearest_up(share: float) -> int:
    """To the nearest, halves up."""
    return math.floor(share + 0.5 + SLACK * max(1.0, share))


def nearest(share: float | Fraction) -> int:
    """int(round()) of the released codes: to the nearest, halves to the even number."""
    return round(share)


def constant(rate: float) -> tuple[float, ...]:
    """The curve of a single drop."""
    return (rate,)


def geometric(rate: float, drops: int) -> tuple[float, ...]:
    """The curve of drops that each keep the same share of what the one before left."""
    return tuple(rate**drop for drop in range(1, drops + 1))


def raised(free: float, rates: tuple[float, ...]) -> tuple[float, ...]:
    """Given rates to a power: themselves at 1/2, towards 0 (those of 1 apart) below and towards 1 above."""
    if free <= 0:
        return tuple(float(rate == 1) for rate in rates)
    return tuple(rate ** (1 / free - 1) for rate in rates)


def falling_sigmoid(middle: float, places: tuple[float, ...], floor: float, steepness: float) -> tuple[float, ...]:
    """1 + (floor - 1) * sigmoid(steepness * (place - middle)) at each place: from 1 down to `floor`."""
    exponents = (max(-700.0, min(700.0, steepness * (place - middle))) for place in places)
    return tuple(1 + (floor - 1) / (1 + math.exp(-exponent)) for exponent in exponents)


def sigmoid_of_height(centre: float, places: tuple[float, ...], height: float, slope: float) -> tuple[float, ...]:
    """height * sigmoid(-slope * (place - centre)) at each place: from at most `height` down to 0."""
    exponents = (max(-700.0, min(700.0, slope * (place - centre))) for place in places)
    return tuple(height / (1 + math.exp(exponent)) for exponent in exponents)


def at_depth(share: float, layers: int) -> int:
    """The layer at a share of the depth, to the nearest, and never the first one."""
    return max(1, min(layers - 1, math.floor(share * layers + 0.5)))


def at_depths(published: Sequence[int], layers: int, depth: int = 32) -> tuple[int, ...]:
    """Published layers of a decoder of `depth`: as they are in one that is as deep or deeper, else at the same fractions."""
    return tuple(published) if layers >= depth else tuple(at_depth(layer / depth, layers) for layer in published)


class TokenSchedule:
    """Whole numbers of visual tokens for a decoder that drops some before certain layers.

    Args:
        name: of the method, for messages.
        layers: of the decoder.
        drops: the layers before which tokens are dropped, rising.
        curve: see `Curve`; the shares must not rise along the drops, nor fall with the free number.
        free: the curve's free number where there is no budget.
        budget: equivalent tokens per image (see above), met as nearly as whole tokens allow: exactly with a drop before
            each layer, to the nearest whole token with one drop, never off by more than half a token; None takes the
            curve as it is.
        bounds: the free number is searched between these.
        patches: visual tokens every image comes with, where that is known: an impossible budget is then refused at
            once.
        rounding: of the shares where there is no budget: `up`, or what the method's authors do.
        fixed: tokens of each image from each drop on, in place of the curve's shares; None: the shares.

    Raises:
        ReductionError: the budget is no number above 0, or no plan with a token in each layer costs so little.
    """

    def __init__(
        self,
        name: str,
        layers: int,
        drops: Sequence[int],
        curve: Curve,
        free: float = 0.5,
        budget: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        patches: int | None = None,
        rounding: Rounding = up,
        fixed: Sequence[int] | None = None,
    ) -> None:
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0):
            raise ReductionError(f"{name}: budget {budget!r} is not a number of tokens above 0")
        self.name, self.layers, self.drops = name, layers, tuple(drops)
        self.curve, self.free, self.budget, self.bounds, self.rounding = curve, free, budget, bounds, rounding
        self.fixed = None if fixed is None else tuple(fixed)
        self.runs = tuple(end - start for start, end in zip(drops, [*drops[1:], layers], strict=True))
        self._plans: dict[tuple[int, int], tuple[int, ...]] = {}
        self._current: Tensor | None = None
        self.begun: list[list[int]] = []  # visual tokens and images of each sequence of the pass
        if patches is not None:
            self.plan(patches)

    def plan(self, present: int, images: int = 1) -> tuple[int, ...]:
        """Tokens of a sequence from each drop on.

        Args:
            present: visual tokens it begins with.
            images: of the sequence; the budget counts for each.
        """
        key = (present, images)
        if key not in self._plans:
            if not present:
                self._plans[key] = (0,) * len(self.drops)
            elif self.budget is None:
                self._plans[key] = self._own(present, images)
            else:
                self._plans[key] = self._met(present, self.budget * images * self.layers - self.drops[0] * present)
        return self._plans[key]

    def _own(self, present: int, images: int) -> tuple[int, ...]:
        """Counts where there is no budget: as given, or the curve's shares."""
        if self.fixed is not None:
            return tuple(min(present, images * count) for count in self.fixed)
        return tuple(min(present, self.rounding(present * share)) for share in self.curve(self.free))

    def layer_counts(self, present: int, images: int = 1) -> tuple[int, ...]:
        """Tokens of a sequence in every layer; see `plan`."""
        visual = [present] * self.layers
        for start, count in zip(self.drops, self.plan(present, images), strict=True):
            visual[start:] = [count] * (self.layers - start)
        return tuple(visual)

    def equivalent(self, present: int, images: int = 1) -> float:
        """What the plan costs: visual tokens per image averaged over the layers."""
        return sum(self.layer_counts(present, images)) / self.layers / images

    def _met(self, present: int, total: float) -> tuple[int, ...]:
        """Counts whose sum over the layers after the first drop comes as near `total` as whole tokens do."""
        if total >= present * sum(self.runs):
            return (present,) * len(self.runs)

        def stays(free: float) -> list[float]:
            return [max(1.0, present * share) for share in self.curve(free)]

        def cost(counts: Sequence[float]) -> float:
            return sum(run * count for run, count in zip(self.runs, counts, strict=True))

        low, high = self.bounds
        least = cost(stays(low))
        if least > total + SLACK * present:
            fewest = (self.drops[0] * present + least) / self.layers
            raise ReductionError(
                f"{self.name}: budget {self.budget:g} (visual tokens averaged over {self.layers} layers) cannot be met "
                f"with {present} visual tokens: {self.drops[0]} layers that see all of them and the fewest that its "
                f"later layers can do with cost {fewest:g}; drop earlier or take a larger budget"
            )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(stays(middle)) <= total else (low, middle)
        counts = [math.floor(count + SLACK * present) for count in stays(low)]
        return self._rounded(counts, present, total - cost(counts))

    def _rounded(self, counts: list[int], present: int, left: float) -> tuple[int, ...]:
        """Hand out what rounding down left over, early layers first; no layer ever gets more than the one before."""

        def roomy() -> list[int]:
            return [at for at, count in enumerate(counts) if count < (counts[at - 1] if at else present)]

        while fitting := [at for at in roomy() if self.runs[at] <= left + SLACK * present]:
            counts[fitting[0]] += 1
            left -= self.runs[fitting[0]]
        nearest = min(roomy(), key=lambda at: self.runs[at], default=None)
        if nearest is not None and self.runs[nearest] < 2 * left:
            counts[nearest] += 1
        return tuple(counts)

    def counts(self, layer: int, layout: TokenLayout, always: bool = False) -> Tensor | None:
        """How many visual tokens each sequence keeps just before a layer. One host synchronisation, at the first drop.

        Args:
            layer: the drops of a pass are to be asked for in order.
            layout: of the sequences.
            always: give the numbers also where nobody drops any: in training every rank has to run the same modules.

        Returns:
            [B], or None where nobody drops any.
        """
        drop = self.drops.index(layer)
        if drop == 0:
            present = layout.is_image.sum(dim=1)
            images = torch.ones_like(present) if layout.images is None else layout.images.clamp(min=1)
            kinds, kind = torch.stack([present, images], dim=1).cpu().unique(dim=0, return_inverse=True)
            self.begun = kinds[kind].tolist()
            plans = torch.tensor([(begun, *self.plan(begun, number)) for begun, number in kinds.tolist()])
            self._current = plans[kind]  # [B, 1 + drops]
        if self._current is None or len(self._current) != len(layout.is_image):
            raise ReductionError(
                f"{self.name}: asked about layer {layer} before layer {self.drops[0]} of the same batch"
            )
        before, after = self._current[:, drop], self._current[:, drop + 1]
        return None if torch.equal(before, after) and not always else after.to(layout.is_image.device)

    def best(self, layout: TokenLayout, scores: Tensor, counts: Tensor) -> Tensor:
        """Keep everything but the visual tokens that are not among a sequence's `counts` highest scores.

        Args:
            layout: of the sequences.
            scores: [B, L], of which those of visual tokens count; equal ones go to the earlier token.
            counts: [B].

        Returns:
            [B, L] bool.

        Raises:
            ReductionError: a visual token's score is not finite.
        """
        scores = scores.float()
        if not bool((scores.isfinite() | ~layout.is_image).all()):
            raise ReductionError(f"{self.name}: the scores of the visual tokens hold NaN or infinity")
        return ~layout.is_image | top_mask(scores.masked_fill(~layout.is_image, -torch.inf), counts)
