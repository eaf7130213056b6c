"""What a method costs, told by the method itself: tokens it leaves, layer by layer, and what it ranks. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

UNKNOWN = "unknown before the images are seen, all are assumed"


class Benchmark(StrEnum):
    """The project's own measurements of speed; a method says in which it takes part where none is named."""

    REDUCTION = "reduction"
    LATENCY = "latency"
    TRAINING = "training"
    PADDING = "padding"
    THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Expected:
    """The share of the patches that a method leaves on average, where each image decides.

    Attributes:
        share: of the patches.
        source: who says so.
    """

    share: float
    source: str


@dataclass(frozen=True)
class CallLimit:
    """How many tensor calls a vision reducer makes at most; the tests hold it to that.

    A view or a copy is no call. On a GPU every call is a launch, which takes longer than its work on so few numbers.

    Attributes:
        calls: of one reduction, for any number of images and patches.
        step: of each repeat, where the rule is sequential (see `VisionReducer.repeats`).
        waits: host synchronisations beside that of `VisionReducer.width`: a decomposition checks whether it converged.
        why: the reason, wherever it is not the default.
    """

    calls: int = 34
    step: int = 0
    waits: int = 0
    why: str = ""

    def allowed(self, repeats: int) -> int:
        """The most calls with so many repeats."""
        return self.calls + self.step * repeats


@dataclass(frozen=True)
class TokensLeft:
    """How many tokens a vision reducer leaves of an image, as far as that is known without the image.

    Attributes:
        tokens: of one image.
        source: where the number comes from.
        exact: every image is left with so many; else it is an expectation.
    """

    tokens: int
    source: str
    exact: bool = True

    @property
    def known(self) -> bool:
        """Whether there is at least an expectation."""
        return self.source != UNKNOWN


@dataclass(frozen=True)
class Course:
    """How many visual tokens of a sequence each decoder layer sees with a pruner.

    Attributes:
        visual: per layer, of one image.
        source: where the numbers come from.
        exact: they are met by every image; else they are an expectation.
    """

    visual: tuple[float, ...]
    source: str
    exact: bool = True

    def before_drops(self, present: int) -> tuple[float, ...]:
        """Visual tokens just before each drop, of an image that comes with so many."""
        return tuple(before for before, after in zip((present, *self.visual), self.visual) if after < before)

    @property
    def known(self) -> bool:
        """Whether there is at least an expectation."""
        return self.source != UNKNOWN
