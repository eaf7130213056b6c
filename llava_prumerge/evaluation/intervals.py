"""95% intervals: Wilson's for accuracies, the normal one for sums and means of means, a seeded bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Z = 1.959963984540054
"""The normal quantile of a two-sided 95% interval."""

Interval = tuple[float, float]


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval for a share, in percent; it also holds near 0 and 100 and for small n.

    Marks between 0 and 1 (VQA accuracy) may be added up for `successes`: their variance is at most that of a share.
    """
    if n == 0:
        return 0.0, 100.0
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def variance_of_mean(values: Sequence[float]) -> float:
    """The squared standard error of a mean of independent values."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n


def normal(groups: Sequence[Sequence[float]], maximum: float) -> Interval:
    """The normal interval for a sum of independent means (one group: a plain mean), clipped to [0, maximum]."""
    total = math.fsum(math.fsum(values) / len(values) for values in groups if values)
    half = Z * math.sqrt(math.fsum(variance_of_mean(values) for values in groups))
    return max(0.0, total - half), min(maximum, total + half)


def mean_of_means(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean over groups (tasks, each weighing the same) of their means, and half of its normal 95% interval.

    Of differences between two models' marks on the same questions it is the paired difference.
    """
    mean = math.fsum(math.fsum(values) / len(values) for values in groups) / len(groups)
    return mean, Z * math.sqrt(math.fsum(variance_of_mean(values) for values in groups)) / len(groups)


def bootstrap(units: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, draws: int = 2000) -> Interval:
    """The percentile bootstrap over independent units.

    Args:
        units: how many units there are (images, when several questions share one).
        statistic: maps weights [draws, units] (how often each unit was drawn) to values [draws].
        seed: of the draws; the same files always give the same interval.
        draws: number of resamples.
    """
    import numpy as np

    weights = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
    low, high = np.percentile(statistic(weights), [2.5, 97.5])
    return float(low), float(high)
