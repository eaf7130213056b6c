"""FLOPs with and without a method: those of the model computed, a vision reducer's own counted while it runs once.

    python -m llava_prumerge.efficiency flops --model llava-1.5-7b --method METHOD --tokens 144

The reducer runs on one made-up image of the right shape.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from llava_prumerge.efficiency.flops import as_text, report
from llava_prumerge.efficiency.options import add_layout, counts_of, settings_of, shape_of
from llava_prumerge.efficiency.shapes import ModelShape
from llava_prumerge.efficiency.tokens import method_block
from llava_prumerge.ground.command import Parser


def reducer_flops(shape: ModelShape, block: Mapping[str, Any], tokens: int, text: int) -> int:
    """Floating-point operations (2 per multiply-add) of everything a reducer adds to one image.

    Matrix products alone are counted, as everywhere in these tables: sorting and softmax over P numbers are nothing
    beside them. The class query and the keys of the tower's next block are among them where the method asks. Loads
    torch, which the rest of the command does without.

    Args:
        shape: of the model.
        block: the reducer's name and settings.
        tokens: that it leaves, where each image would decide.
        text: tokens of the prompt, for methods that read it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llava_prumerge.methods.base import VisionTokens
    from llava_prumerge.methods.image_tokens import LanguageShape
    from llava_prumerge.methods.registry import build_reducer

    reducer, vision = build_reducer(block), shape.vision
    tiles, patches = (1, vision.patches) if vision.cut is None else (vision.cut.tiles, vision.cut.units)
    if not reducer.tokens_left(patches).exact:
        reducer = build_reducer({**block, "budget": max(1, min(tokens // tiles, patches))})
    reducer.eval()
    height, width = reducer.input_size(vision.image, vision.image, vision.patch)
    grid = (height // vision.patch, width // vision.patch) if vision.cut is None else near_square(patches)
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    hidden = draw(1, grid[0] * grid[1] + 1, vision.width)
    weight = draw(vision.width, vision.width) / vision.width**0.5

    def projections(own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden[:, :1] @ weight, hidden @ weight

    wide = shape.language.hidden if reducer.site == "projected" else vision.width
    features = draw(1, grid[0] * grid[1], wide) if reducer.site == "projected" else hidden[:, 1:]
    prompt = draw(1, text, shape.language.hidden), torch.ones(1, text, dtype=torch.bool)
    image = VisionTokens(
        features,
        grid,
        projections,
        vision.heads,
        prompt=lambda: prompt,
        ids=torch.zeros(1, dtype=torch.long),
        unprojected=hidden[:, 1:],
        projected=draw(1, grid[0] * grid[1], shape.language.hidden),
    )
    reducer.grow(LanguageShape(wide))
    reducer.requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        reducer(image)
    return tiles * counter.get_total_flops()


def near_square(patches: int) -> tuple[int, int]:
    """Rows and columns of so many patches, as alike as whole numbers can be."""
    rows = next(rows for rows in range(math.isqrt(patches), 0, -1) if patches % rows == 0)
    return rows, patches // rows


def add_arguments(parser: Parser) -> None:
    """The command's options."""
    add_layout(parser)


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    shape = shape_of(given)
    counts = counts_of(given, shape)
    reducer = 0
    if counts.kept is not None:
        block = method_block(shape, given.method, given.tokens, settings_of(given))
        reducer = reducer_flops(shape, block["vision"], counts.kept, counts.text)
    found = report(shape, counts, reducer)
    return json.dumps({"method": given.method, **found}) if given.json else as_text(shape, counts, found, given.method)
