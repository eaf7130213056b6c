"""What a world is made of beside its scenes: how a scene becomes a picture, and how much the benchmarks ask about each picture.

The pocket world draws shapes on a plain ground; `playground/photos` paints the same scenes into photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from playground.pocket.scenes import SIZE, Scene, render

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class World:
    """How records and benchmarks are made of scenes.

    Attributes:
        paint: draws a scene; the seed decides all that is not asked for. It travels to worker processes.
        size: sides of its pictures, in pixels.
        split: of the scenes that benchmarks show.
        shares: size of single benchmarks, times the scale of all.
        per_image: questions about each image of VQAv2.
        regions: where a scene's items are in the picture of a seed (docs/data.md); None where nobody asks.
        settings: what decides the pictures beside the code, for the manifest.
    """

    paint: Callable[[Scene, int], Image] = render
    size: int = SIZE
    split: str = "test"
    shares: Mapping[str, float] = field(default_factory=dict)
    per_image: int = 4
    regions: Callable[[Scene, int], list[dict[str, Any]]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


POCKET = World()
