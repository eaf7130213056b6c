"""A golden file of a pruner's choice alone: the attention that visual tokens receive from the raters, scores and kept tokens."""

from __future__ import annotations

from typing import Any

import torch
from golden_arrays import Arrays, Comparison

from llava_prumerge.methods.base import DecoderShape, DecoderTokens
from llava_prumerge.methods.contract import left_of
from llava_prumerge.methods.registry import build_pruner, discover, fields_of
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout

GIVEN = "rater_attention"
WIDTH = 4


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return GIVEN in arrays


def compare(arrays: Arrays, method: str, settings: dict[str, Any]) -> Comparison:
    """Show the method an image and, behind it, a text whose every token is a rater; settings that the file has are its own."""
    heads, raters, visual = arrays[GIVEN].shape
    own = {
        key: float(arrays[key]) for key in ("scale", "bias") if key in arrays and key in fields_of(discover()[method])
    }
    pruner = build_pruner({"name": method, **own, **settings}, DecoderShape(32, WIDTH, heads, visual)).eval()
    if pruner is None:
        raise ReductionError(f"{method} prunes nothing")
    places = torch.arange(visual + raters)[None]
    is_image = places < visual
    layout = TokenLayout(is_image, torch.ones_like(is_image), places, torch.where(is_image, places, -1))
    asked: list[list[int]] = []

    def attention(_: int, rows: torch.Tensor) -> torch.Tensor:
        asked.append(sorted(rows[0].tolist()))
        received = torch.cat([arrays[GIVEN], torch.zeros(heads, raters, raters)], dim=2)
        return received[:, rows[0] - visual][None]

    # without a difference between words none is above the mean, so that all of them rate
    tokens = DecoderTokens(torch.ones(1, visual + raters, WIDTH), layout, attention)
    layer = next(layer for layer in pruner.layers if layer)
    if 0 in pruner.layers:
        pruner(0, tokens)
    _, stays = left_of(answer := pruner(layer, tokens), layout)
    merged = getattr(answer, "merged", torch.zeros_like(stays))  # places of means, which stand for no patch
    found = Comparison()
    found.kept("raters", asked[:1], [places[0, visual:].tolist()])
    found.kept("kept", [(stays & is_image & ~merged)[0].nonzero()[:, 0].tolist()], [arrays["kept"].tolist()])
    return found
