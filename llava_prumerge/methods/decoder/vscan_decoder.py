"""VScan's second step: in the middle of the decoder the visual tokens that the last prompt token attends to most stay.

VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models (arXiv 2505.22654, TMLR 2026; code
Tencent/SelfEvolvingAgent a82450e). Its first step, in the vision tower, is a reducer of its own; `configs/method/vscan_64.yaml`
is both. As in the authors' code the layer about to run ranks by its own norm, projections and rotary embedding, averaged over
heads, and positions are consecutive from there on, in decoding too. The code takes a number of tokens, 32 of 96 in the
published runs: a third of what the first step left, which is our default, to the nearest token. "After layer 16" of
32 is before layer 16 counted from 0; models of fewer than 32 layers take the same fraction (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.pruners import CountSettings, PromptRankedPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.token_schedule import at_depths, geometric, nearest_up

LAYERS = (16,)
"""Of 32."""


@dataclass(frozen=True, kw_only=True)
class VScanDecoderSettings(CountSettings):
    """One drop, or several, each ranked by its own layer."""

    layers: tuple[int, ...] | None = setting(
        None, "the first layers on fewer tokens; null: 16 of 32, or the same fraction", source="released code"
    )
    keep_ratio: float = setting(
        1 / 3,
        "share of the visual tokens there that each drop leaves, to the nearest; without meaning beside counts or a budget",
        fraction(),
        source="released scripts: 32 of 96",
    )


@register("vscan_decoder")
class VScanDecoder(PromptRankedPruner):
    """Keep the most attended visual tokens, from the middle of the decoder on."""

    paper = "VScan, arXiv 2505.22654 (TMLR 2026), its step in the decoder"
    positions = "renumbered"
    ranks_ahead = True
    settings: VScanDecoderSettings

    def __init__(self, settings: VScanDecoderSettings, shape: DecoderShape) -> None:
        layers = at_depths(LAYERS, shape.layers) if settings.layers is None else settings.layers
        curve = partial(geometric, drops=len(layers))
        super().__init__(settings, shape, layers, curve, settings.keep_ratio, fixed=settings.counts)

    def rounding(self, share: float) -> int:
        """To the nearest, halves up."""
        return nearest_up(share)
