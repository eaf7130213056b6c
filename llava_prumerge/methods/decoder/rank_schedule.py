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
from functools import partial

import torch
from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.prompt_rank import ROWS, prompt_attention
from llava_prumerge.ops.token_schedule import Curve, TokenSchedule, falling_sigmoid, raised

DEPTHS = ("layers", "relative")
R, GAMMA, K = 0.05, 1.0, 2.0
"""Of the sigmoid where nothing is given: about an eighth of the tokens of 32 layers, as in the paper's headline."""


@register("rank_schedule")
class RankSchedule(DecoderPruner):
    """Keep a given share of the visual tokens in each layer, best first.

    Args:
        shape: of the language model.
        rates: one share in [0, 1] per layer, never rising; that of the layers before `first` is 1. In place of r, gamma
            and k.
        r: what the sigmoid falls to, the final rate, in [0, 1].
        gamma: how steeply, per unit of depth.
        k: where it is half way down, in units of depth. Not with a budget, which decides it.
        depth: "layers" counts a layer's depth as its number (as in the formula); "relative" as its number over that of
            all layers, so that one setting serves models of any depth (gamma then as many times larger).
        first: tokens are dropped before this layer and all later ones; 1 is the first that has a layer before it to
            rank by.
        rows: "last" ranks by the prompt's last token, "text" by the mean over all its text tokens that see an image.
        budget: visual tokens per image averaged over all decoder layers, met exactly (see `ops.token_schedule`): by moving
            the sigmoid (its k), or by raising given rates to a power; None takes the curve as it is, shares of tokens
            rounded up.
    """

    def __init__(
        self,
        shape: DecoderShape,
        rates: Sequence[float] | None = None,
        r: float | None = None,
        gamma: float | None = None,
        k: float | None = None,
        depth: str = "layers",
        first: int = 1,
        rows: str = "last",
        budget: float | None = None,
    ) -> None:
        for key, value, accepted in (("rows", rows, ROWS), ("depth", depth, DEPTHS)):
            if value not in accepted:
                raise ReductionError(f"{self.name}: {key} {value!r} is not one of {', '.join(accepted)}")
        if not isinstance(first, int) or not 1 <= first < shape.layers:
            raise ReductionError(f"{self.name}: first {first!r} is not one of the layers 1 to {shape.layers - 1}")
        super().__init__(shape, tuple(range(first, shape.layers)))
        self.rows, self.budget, self.depth, self.rates = rows, budget, depth, None if rates is None else list(rates)
        if rates is not None:
            if any(value is not None for value in (r, gamma, k)):
                raise ReductionError(f"{self.name}: give rates, or r={r}, gamma={gamma}, k={k}, not both")
            curve, free, bounds = partial(raised, rates=self._checked(rates, shape)), 0.5, (0.0, 1.0)
        else:
            curve, free, bounds = self._sigmoid(shape, r, gamma, k)
        patches = None if shape.reduced else shape.patches
        self.schedule = TokenSchedule(self.name, shape.layers, self.layers, curve, free, budget, bounds, patches)

    def _checked(self, rates: Sequence[float], shape: DecoderShape) -> tuple[float, ...]:
        """The rates of the layers before which tokens are dropped."""
        first = self.layers[0]
        if len(rates) != shape.layers:
            raise ReductionError(f"{self.name}: {len(rates)} rates for {shape.layers} layers; give one per layer")
        wrong = [rate for rate in rates if not isinstance(rate, int | float) or not 0 <= rate <= 1]
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
        return tuple(float(rate) for rate in rates[first:])

    def _sigmoid(
        self, shape: DecoderShape, r: float | None, gamma: float | None, k: float | None
    ) -> tuple[Curve, float, tuple[float, float]]:
        """The sigmoid as a curve whose free number is k, that k, and where a budget's k is searched."""
        unit = 1.0 if self.depth == "layers" else 1.0 / shape.layers
        if self.budget is not None and k is not None:
            raise ReductionError(f"{self.name}: a budget of {self.budget} decides k; leave out k={k}")
        self.r, self.gamma = R if r is None else r, GAMMA / unit if gamma is None else gamma
        self.k = None if self.budget is not None else K * unit if k is None else k
        if not 0 <= self.r <= 1:
            raise ReductionError(f"{self.name}: r {r!r} is not in [0, 1]")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ReductionError(f"{self.name}: gamma {gamma!r} is not above 0")
        if self.k is not None and not math.isfinite(self.k):
            raise ReductionError(f"{self.name}: k {k!r} is not a number")
        places = tuple(layer * unit for layer in self.layers)
        reach = 40 / self.gamma  # beyond, the sigmoid has arrived to the last digit
        curve = partial(falling_sigmoid, places=places, floor=self.r, steepness=self.gamma)
        return curve, 0.0 if self.k is None else self.k, (places[0] - reach, places[-1] + reach)

    @torch.no_grad()
    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | None:
        """-> [B, L] bool."""
        layout = tokens.layout
        counts = self.schedule.counts(layer, layout, always=self.training)
        if counts is None:
            return None
        scores = prompt_attention(tokens.attention, layout, layer - 1, self.rows)
        return self.schedule.best(layout, scores, counts)

    def extra_repr(self) -> str:
        curve = f"r={self.r}, gamma={self.gamma}, k={self.k}" if self.rates is None else f"rates={self.rates}"
        return f"{curve}, depth={self.depth}, first={self.layers[0]}, rows={self.rows}, budget={self.budget}"
