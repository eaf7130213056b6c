"""The least that each part of a question can take on this machine: its operations at the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.operations import HALF, Operation, decode, prefill, projector, tower
from llava_prumerge.efficiency.roofline import seconds
from llava_prumerge.efficiency.shapes import shape_of_config
from llava_prumerge.efficiency.tokens import TokenCounts
from llava_prumerge.model.attach import plain

if TYPE_CHECKING:
    from llava_prumerge.inference.asking import Answer
    from llava_prumerge.profiling.machine import Peaks


def floors_of(
    model: Any, processor: Any, sizes: Sequence[tuple[int, int]], answer: Answer, peaks: Peaks, projects_all: bool
) -> dict[str, float]:
    """Seconds of tower, projector, prefill and a decoded token, with attention that never writes its scores.

    Args:
        model, processor: that answered.
        sizes: (height, width) of the images in pixels.
        answer: what was kept of each of them.
        peaks: of the machine.
        projects_all: the method acts behind the projector, or there is none.

    Raises:
        EfficiencyError: the model's operations cannot be counted.
    """
    inner, width = plain(model), model.dtype.itemsize
    config, name = inner.config.to_dict(), Path("the model", "config.json")
    pixels = processor.image_processor.to_dict()
    machine = peaks.hardware(width)
    shapes = [shape_of_config(config, name, size, pixels) for size in sizes]
    if not shapes:
        raise EfficiencyError("there is no image")
    visual = tuple(sum(layers) for layers in zip(*(image.layers for image in answer.images), strict=True))
    text = answer.prompt_tokens - sum(image.full for image in answer.images)
    counts = TokenCounts(text, visual, 0, 0)
    language = shapes[0].language
    looking: list[Operation] = []
    projecting: list[Operation] = []
    for shape, image in zip(shapes, answer.images, strict=True):
        looking += tower(shape.vision, shape.vision.seen, fused=True)
        projecting += projector(shape.projector, image.full if projects_all else image.kept)
    parts = {
        "tower": looking,
        "projector": projecting,
        "prefill": prefill(language, counts.grouped(), HALF, True),
        "decode": decode(language, counts.grouped(), HALF, True, answer.new_tokens),
    }
    return {part: seconds(operations, machine.bandwidth, machine.fp16) for part, operations in parts.items()}
