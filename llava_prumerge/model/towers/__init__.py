"""Vision towers that transformers does not have: one file each, named as its type without our prefix, found by that name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.families import PREFIX


def own_tower_types() -> list[str]:
    """The types as configurations name them; imports none of them."""
    return sorted(PREFIX + module.name for module in pkgutil.iter_modules(__path__))


def know_tower(vision_config: Any) -> None:
    """Make transformers know the type of a vision configuration, where it is one of ours.

    Args:
        vision_config: a mapping or a configuration; anything else is nobody's tower.

    Raises:
        ModelError: the type has our prefix, and there is none of that name.
    """
    given = vision_config if isinstance(vision_config, Mapping) else getattr(vision_config, "__dict__", {})
    kind = given.get("model_type")
    if not isinstance(kind, str) or not kind.startswith(PREFIX):
        return
    if kind not in own_tower_types():
        raise ModelError(f"there is no vision tower of type {kind!r}; ours are: {', '.join(own_tower_types())}")
    importlib.import_module(f"{__name__}.{kind.removeprefix(PREFIX)}")
