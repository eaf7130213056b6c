"""What a benchmark comes to: a score, its 95% interval (Wilson's, normal, or a seeded bootstrap), and the result file.

A result is one JSON per task with the score, what it was measured on, and what the method kept.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.evaluation.records import EvaluationError, Record, read_json
from llava_prumerge.ground.files import write_text

if TYPE_CHECKING:
    import numpy as np

Z = 1.959963984540054
"""The normal quantile of a two-sided 95% interval."""

Interval = tuple[float, float]

Result = dict[str, Any]


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


def mean_over_clusters(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """The mean of values that are alike within clusters (questions about one image), and half of its normal 95% interval.

    The error is that of independent clusters: n / (n - 1) times the sum of each cluster's squared sum of residuals.
    Of differences between two models' marks on the same questions it is the paired difference.

    Args:
        values: of the questions.
        clusters: the one that each belongs to.
    """
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    n = len(sums)
    if n < 2:
        return mean, 0.0
    return mean, Z * math.sqrt(math.fsum(total**2 for total in sums.values()) * n / (n - 1)) / len(values)


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


@dataclass(frozen=True)
class Score:
    """The result of scoring one answer file.

    Attributes:
        metrics: everything the task reports, percentages in percent.
        headline: the number a table prints.
        interval: its 95% interval, and `interval_rule` how it was found.
        n: the number of questions (for CircularEval: of question groups) the headline is over.
        chance: what the best blind guess gets, and `chance_rule` what that guess is.
        marks: per question, in the order of the references, how right the answer was (0 to 1).
        part: what was scored, where it is not the whole benchmark, such as "96 of 900 questions; adversarial alone".
    """

    metrics: dict[str, Any]
    headline: float
    interval: Interval
    interval_rule: str
    n: int
    chance: float
    chance_rule: str
    marks: list[float]
    part: str | None = None

    @classmethod
    def of_marks(
        cls,
        metrics: dict[str, Any],
        headline: float,
        marks: Sequence[float],
        *,
        chance: float,
        chance_rule: str,
        over: Sequence[float] | None = None,
    ) -> Score:
        """A score whose headline is a mean of marks in [0, 1], with Wilson's interval.

        Args:
            metrics, headline, chance, chance_rule: as above.
            marks: of the questions, 0 to 1; booleans will do.
            over: the marks that the headline is the mean of, where these are others (groups, or some of the questions).
        """
        over = marks if over is None else over
        return cls(
            metrics=metrics,
            headline=headline,
            interval=wilson(math.fsum(over), len(over)),
            interval_rule="Wilson",
            n=len(over),
            chance=chance,
            chance_rule=chance_rule,
            marks=[float(mark) for mark in marks],
        )


def summarise_kept(records: Sequence[Record], placeholders: Callable[[], int]) -> dict[str, float] | None:
    """Visual tokens that reached the language model, over all answers about an image; None where there was none.

    `mean` and `share` are of what enters the decoder; `equivalent` and `equivalent_share` are averaged over its layers,
    so that they count what a decoder pruner drops as well.

    Args:
        records: the answers with their metadata.
        placeholders: gives the visual tokens of an image without reduction, where answers do not tell: of models whose
            images each have their own number they do.
    """
    counts = [record["metadata"] for record in records if "kept" in record.get("metadata", {})]
    if not counts:
        return None
    mean = sum(count["kept"] for count in counts) / len(counts)
    equivalent = sum(count["equivalent"] for count in counts) / len(counts)
    own = [count["full"] for count in counts if "full" in count]
    full = sum(own) / len(own) if own else placeholders()
    return {
        "mean": mean,
        "min": min(count["kept_min"] for count in counts),
        "max": max(count["kept_max"] for count in counts),
        "share": 100 * mean / full,
        "of": full,
        "equivalent": equivalent,
        "equivalent_share": 100 * equivalent / full,
        "images": len(counts),
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file; lists of numbers stay on one line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_results(folders: Sequence[Path], tasks: Sequence[str]) -> Iterator[tuple[Path, Result]]:
    """All result files below some folders, in the order of their paths."""
    for folder in folders:
        if not folder.is_dir():
            raise EvaluationError(f"{folder}: no such folder of results")
        for path in sorted(path for task in tasks for path in folder.rglob(f"{task}.json")):
            content = read_json(path)
            if isinstance(content, dict) and content.get("task") == path.stem and "row" in content:
                yield path, content
