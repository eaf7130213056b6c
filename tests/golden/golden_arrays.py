"""What golden files are compared with: sets of kept tokens, which must be equal, and values, which must be near."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, Tensor]
TOLERANCE = 1e-5
"""Of the largest expected value."""


def read(path: Path) -> Arrays:
    """The arrays of a file that are numbers; floats in float32.

    Raises:
        OSError, ValueError: it is no file of arrays.
    """
    with np.load(path, allow_pickle=False) as content:
        held = {name: np.asarray(content[name]) for name in content.files}
    found = {name: torch.from_numpy(value) for name, value in held.items() if value.dtype.kind in "fiub"}
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def whole(value: Tensor | int) -> int:
    """A whole number, also where it is an array of one."""
    return int(value)


@dataclass
class Comparison:
    """What was found.

    Attributes:
        lines: one for each thing compared.
        largest: difference as a part of the largest expected value.
        equal: all kept sets are equal and all differences within their tolerance.
    """

    lines: list[str] = field(default_factory=list)
    largest: float = 0.0
    equal: bool = True

    def kept(self, name: str, found: list[list[int]], wanted: list[list[int]]) -> None:
        """Compare kept tokens, in the order given, per image."""
        same = found == wanted
        shared = sum(len(set(one) & set(other)) for one, other in zip(found, wanted, strict=False))
        self.lines.append(f"{name}: {'equal' if same else 'DIFFERS'}, {shared} of {sum(map(len, wanted))} in common")
        self.equal &= same

    def values(self, name: str, found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
        """Compare values."""
        if found.shape != wanted.shape:
            self.lines.append(f"{name}: DIFFERS, shape {list(found.shape)} and not {list(wanted.shape)}")
            self.largest, self.equal = float("inf"), False
            return
        scale = max(wanted.float().abs().max().item(), 1e-12)
        difference = (found.float() - wanted.float()).abs().max().item() / scale
        self.lines.append(
            f"{name}: {'within' if difference <= tolerance else 'NOT WITHIN'} {tolerance:g}: {difference:.3g}"
        )
        self.largest = max(self.largest, difference)
        self.equal &= difference <= tolerance
