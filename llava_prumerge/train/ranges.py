"""What numbers a training run's settings accept, and the check of it. Beyond these bounds a run fails later, or means nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.data.recipe_data import LONGEST, MOST_FRAMES

MOST_STEPS = 10**9


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds.

    Attributes:
        low, high: the bounds.
        with_low, with_high: whether they are accepted themselves.
    """

    low: float
    high: float
    with_low: bool = True
    with_high: bool = True

    def holds(self, value: float) -> bool:
        """Whether a number is one of them; NaN is none."""
        above = value >= self.low if self.with_low else value > self.low
        return above and (value <= self.high if self.with_high else value < self.high)

    def __str__(self) -> str:
        low = f"at least {self.low:,}" if self.with_low else f"greater than {self.low:,}"
        return f"{low} and {'at most' if self.with_high else 'less than'} {self.high:,}"


_SHARE = Range(0, 1, with_high=False)
_RATE = Range(0, 10, with_low=False)

RANGES: Mapping[str, Range] = {
    "lora_rank": Range(1, 65_536),
    "lora_alpha": Range(1, 1_000_000),
    "lora_dropout": _SHARE,
    "max_length": Range(1, LONGEST),
    "length_pool": Range(1, 1_000_000),
    "bad_sample_limit": _SHARE,
    "frames": Range(1, MOST_FRAMES),
    "workers": Range(0, 1024),
    "tower_cache_gb": Range(1, 1_000_000),
    "global_batch": Range(1, 10_000_000),
    "per_device_batch": Range(1, 1_000_000),
    "epochs": Range(0, 100_000, with_low=False),
    "max_steps": Range(1, MOST_STEPS),
    "learning_rate": _RATE,
    "projector_lr": _RATE,
    "method_lr": _RATE,
    "weight_decay": Range(0, 10),
    "warmup_ratio": _SHARE,
    "max_grad_norm": Range(0, 1_000_000),
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": Range(0, 1, with_low=False),
    "seed": Range(0, 2**32 - 1),  # NumPy takes no more
    "logging_steps": Range(1, MOST_STEPS),
    "save_steps": Range(0, MOST_STEPS),
    "save_total_limit": Range(1, MOST_STEPS),
    "max_skipped_steps": Range(1, MOST_STEPS),
}


def check_ranges(values: Mapping[str, float | None]) -> None:
    """Refuse numbers that no run can use; None stands for "not set".

    Raises:
        RecipeError: with the key and what it accepts.
    """
    for key, accepted in RANGES.items():
        value = values.get(key)
        if value is not None and not accepted.holds(value):
            raise RecipeError(f"{key}={value!r}: must be {accepted}")
