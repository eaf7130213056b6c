"""What a search on calibration questions can find for a method, told by the method itself. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class SearchKind(StrEnum):
    """What is searched for, and what `SearchTarget.settings` is called with by name."""

    LAYER = "layer"
    """The first layer that may run without visual tokens. `layer`"""
    RATES = "rates"
    """A rate for each layer. `rates` (one per layer, never rising), `first` (layer of the first drop), `rows` (that rank)"""
    SIGMOID = "sigmoid"
    """A falling sigmoid of rates over the layers. `height`, `slope` (per layer), `rows`, `budget` (which decides where)"""


@dataclass(frozen=True)
class SearchTarget:
    """One thing that can be searched for a method: `search_targets` of its class lists them.

    Attributes:
        kind: what is searched for.
        settings: what was found, by name (see `SearchKind`) -> the method's settings.
        source: who proposes the search, for the first line of the method file.
        earliest: of a layer: the first that is tried, as a fraction of the depth.
        threshold: of a layer: the largest mean KL(with the method || without) of the next token that counts as no change.
    """

    kind: SearchKind
    settings: Callable[..., dict[str, Any]]
    source: str
    earliest: float = 0.0
    threshold: float = 0.003
