"""What the demo's page is told: answers, settings and kept tokens as JSON; the page itself draws them on the image."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava_prumerge.viz.demo_model import Answer

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_prumerge.inference.asking import ImageTokens
    from llava_prumerge.inference.watching import Token
    from llava_prumerge.viz.panels import Panel

LONGEST = 576
"""Pixels of the longer side of a picture that is sent; of several tiles each has its share."""
QUALITY = 88  # of the JPEG


def answer_json(answer: Answer, block: dict[str, Any]) -> dict[str, Any]:
    """An answer, its method's settings, and the tokens that each layer saw."""
    seen = answer.seen
    mean = seen.equivalent if seen.layers else float(seen.kept)
    return {
        "answer": answer.text,
        "reduction": block,
        "tokens": {"full": seen.full, "kept": seen.kept, "layers": list(seen.layers), "mean": round(mean, 2)},
        "seconds": round(answer.seconds, 3),
        "first": round(answer.first, 3),
        "new_tokens": answer.new_tokens,
        "untrained": answer.untrained,
        "grids": grids(seen),
        "stages": stages(seen),
    }


def grids(seen: ImageTokens) -> list[tuple[int, int]]:
    """(rows, columns) of each tile."""
    return [tile.grid for tile in seen.tiles]


def stages(seen: ImageTokens) -> list[dict[str, Any]]:
    """The tokens that enter the decoder, and those that are left by each layer before which a pruner acted.

    Each stage has the layer from which on it holds, how many tokens there are, the patches of each tile that they stand
    for, each once, and how many tokens stand for several patches or none.
    """
    found: list[tuple[int, Sequence[Token]]] = [(0, seen.tokens), *sorted(seen.left.items())]
    if 0 in seen.left:  # a pruner before the first layer
        found = found[1:]
    count = len(grids(seen))
    told = []
    for layer, tokens in found:
        units: list[list[int]] = [
            sorted({unit for tile, unit in tokens if tile == at and unit >= 0}) for at in range(count)
        ]
        others = sum(unit < 0 for _, unit in tokens)
        told.append({"layer": layer, "tokens": len(tokens), "units": units, "others": others})
    return told


def picture_addresses(pictures: Sequence[Image]) -> list[str]:
    """Tiles as data addresses, small enough that many of them are little."""
    side = math.ceil(LONGEST / math.sqrt(len(pictures))) if len(pictures) > 1 else LONGEST
    return [_address(picture, side) for picture in pictures]


def looked_json(panels: Sequence[Panel], block: dict[str, Any]) -> dict[str, Any]:
    """Drawn pictures with their captions."""
    drawn = [{"kind": one.kind, "caption": one.caption, "source": _address(one.picture, 2 * LONGEST)} for one in panels]
    return {"reduction": block, "pictures": drawn}


def _address(picture: Image, side: int) -> str:
    small, file = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
