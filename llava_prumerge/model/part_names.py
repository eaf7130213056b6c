"""Which parameters of a model belong to its vision towers and which to its projector, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llava_prumerge.model.attach import plain


@dataclass(frozen=True)
class PartNames:
    """Names of modules and parameters in the plain model, such as `model.vision_tower`.

    Attributes:
        towers: of the vision towers; where a projector lies within one it is the projector's.
        projector: of what stands between tower and language model, the token for line breaks included.
        methods: of the reducer and the pruner.
    """

    towers: tuple[str, ...]
    projector: tuple[str, ...]
    methods: tuple[str, ...]

    def role(self, name: str) -> str:
        """What a parameter is: "projector", "method", "tower", or "base" (language model and head)."""
        if _within(name, self.methods):
            return "method"
        if _within(name, self.projector):
            return "projector"
        return "tower" if _within(name, self.towers) else "base"


def part_names(model: Any) -> PartNames:
    """Those of a model with its head, in PEFT's wrapper too."""
    host = plain(model).model
    parts = host.tower_names, host.projector_names, ("reducer", f"{host.decoder_name}.pruner")
    return PartNames(*(tuple(f"model.{name}" for name in names) for names in parts))


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
