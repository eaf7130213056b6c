"""Score against visual tokens, a line per method: the best ones in colours with their names at the line's end, the others grey."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.ground.palette import BLACK, COLOURS, GREY, darker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VISION, DECODER, BOTH, TRAINED = "vision reducer", "decoder pruner", "both", "trained"
STYLES: dict[str, dict[str, Any]] = {
    VISION: {"linestyle": "-", "marker": "o"},
    DECODER: {"linestyle": "--", "marker": "s"},
    BOTH: {"linestyle": "-.", "marker": "D"},
    TRAINED: {"linestyle": ":", "marker": "^"},
}
BEST = len(COLOURS)
WIDTH, HEIGHT, DPI = 9.0, 5.2, 100  # inches of a panel
LETTERS = 14  # points: 9 where a picture of 900 pixels is shown at 600
APART = 0.062  # least distance of two names, of the panel's height
TICKS = 8
MADE = 100  # letters of a line below the panels


@dataclass(frozen=True)
class Line:
    """A method at several budgets: (visual tokens, score in percent) each."""

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Level:
    """What does not depend on tokens: a score in percent, and half of its 95% interval."""

    name: str
    score: float
    half: float = 0.0


@dataclass(frozen=True)
class Panel:
    """One plot: its title, its lines, and the levels across it."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[Level] = field(default=())


def best_of(lines: Sequence[Line], most: int = BEST) -> list[Line]:
    """The lines that are named, best first: by how far their points lie above the middle one at the same tokens, on average.

    Points count as of the same tokens where these differ by less than a fifth or so.
    """

    def place(tokens: float) -> int:
        return round(4 * math.log2(tokens))

    at: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        for tokens, score in line.points:
            at[place(tokens)].append(score)
    middle = {key: median(scores) for key, scores in at.items()}
    ahead = {line: fmean(score - middle[place(tokens)] for tokens, score in line.points) for line in lines}
    return sorted(lines, key=lambda line: -ahead[line])[:most]


def spread(places: Sequence[float], apart: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places moved as little as needs be for any two to be `apart`, in their order, between `low` and `high`."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    groups: list[
        tuple[list[float], float]
    ] = []  # wanted places less what those below take up, and where the first stands
    for number, at in enumerate(order):
        wanted, start = [places[at] - apart * number], places[at] - apart * number
        while groups and groups[-1][1] > start:
            wanted = groups.pop()[0] + wanted
            start = fmean(wanted)
        groups.append((wanted, start))
    starts = [start for wanted, start in groups for _ in wanted]
    ceiling = high - apart * (len(places) - 1)
    moved = [0.0] * len(places)
    for number, at in enumerate(order):
        moved[at] = max(low, min(starts[number], ceiling)) + apart * number
    return moved


def draw_panels(
    path: Path, panels: Sequence[Panel], tokens: str, made: str = "", ticks: Sequence[float] | None = None
) -> None:
    """A PNG of `figure_of`; what made the numbers stands in its metadata, too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state

    figure = figure_of(panels, tokens, made, ticks)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Description": made} if made else {})


def figure_of(panels: Sequence[Panel], tokens: str, made: str = "", ticks: Sequence[float] | None = None) -> Figure:
    """A panel below the other, with the same scores on all their axes.

    Args:
        panels: one or more; those without lines are left out.
        tokens: what the visual tokens are, below the last panel.
        made: what made the numbers; stands below.
        ticks: numbers of tokens that the axis names; those of the points by default, where they are few.

    Raises:
        EvaluationError: there is no point to draw.
    """
    from matplotlib.figure import Figure

    drawn = [panel for panel in panels if any(line.points for line in panel.lines)]
    if not drawn:
        raise EvaluationError("no result has both a score and a number of kept visual tokens: there is nothing to plot")
    figure = Figure(figsize=(WIDTH, HEIGHT * len(drawn) + 0.9), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(drawn), 1, squeeze=False, sharey=True)[:, 0]
    points = [point for panel in drawn for line in panel.lines for point in line.points]
    scores = [score for _, score in points]
    for panel in drawn:
        scores += [end for one in panel.levels for end in (one.score - one.half, one.score + one.half)]
    room = 0.04 * (max(scores) - min(scores) or 1.0)
    for axis, panel in zip(axes, drawn, strict=True):
        axis.set_ylim(min(scores) - room, max(scores) + room)
        _draw(axis, panel)
        _scale(axis, [number for number, _ in points], ticks)
    axes[-1].set_xlabel(tokens, fontsize=LETTERS)
    kinds = [kind for kind in STYLES if any(line.kind == kind for panel in drawn for line in panel.lines)]
    proxies = [axes[0].plot([], [], color=BLACK, lw=1.6, ms=7, **STYLES[kind])[0] for kind in kinds]
    shape = {"ncols": len(kinds), "fontsize": LETTERS - 1, "handlelength": 3, "frameon": False}
    figure.legend(proxies, kinds, loc="outside upper center", **shape)
    if made:
        figure.supxlabel(textwrap.fill(made, MADE), fontsize=LETTERS - 4)
    return figure


def _draw(axis: Any, panel: Panel) -> None:
    """Lines, their names and the levels."""
    lines = [line for line in panel.lines if line.points]
    named = best_of(lines)
    others = len(lines) - len(named)
    for line in lines:
        if line not in named:
            axis.plot(
                *zip(*line.points, strict=True), color=GREY, lw=1, ms=4, zorder=1, gid="grey", **STYLES[line.kind]
            )
    ends = []
    for line, colour in zip(named, COLOURS, strict=False):
        axis.plot(
            *zip(*line.points, strict=True), color=colour, lw=1.8, ms=7, zorder=3, gid=line.name, **STYLES[line.kind]
        )
        ends.append((line, colour))
    _name(axis, ends)
    for level in panel.levels:
        axis.axhline(level.score, color=BLACK, lw=1, zorder=2)
        axis.axhspan(level.score - level.half, level.score + level.half, color=BLACK, alpha=0.07, lw=0, zorder=0)
        where = axis.get_yaxis_transform()
        axis.text(0.01, level.score, level.name, va="bottom", fontsize=LETTERS - 1, transform=where, zorder=4)
    rest = f" (grey: {others} more)" if others else ""
    axis.set_title(f"{panel.title}{rest}", fontsize=LETTERS, loc="left")
    axis.set_ylabel("score, percent", fontsize=LETTERS)
    axis.tick_params(labelsize=LETTERS - 1)
    axis.grid(alpha=0.3)


def _name(axis: Any, ends: Sequence[tuple[Line, str]]) -> None:
    """Names at the right of the panel, none over another, each joined to the end of its line."""
    low, high = axis.get_ylim()
    heights = [(line.points[-1][1] - low) / (high - low) for line, _ in ends]
    for (line, colour), height in zip(ends, spread(heights, APART, 0.02, 0.98), strict=True):
        axis.annotate(
            line.name,
            xy=line.points[-1],
            xytext=(1.05, height),
            textcoords="axes fraction",
            color=darker(colour),
            fontsize=LETTERS - 1,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def _scale(axis: Any, tokens: Sequence[float], ticks: Sequence[float] | None) -> None:
    """Tokens by powers of two, some of them named."""
    axis.set_xscale("log", base=2)
    named = sorted(set(tokens)) if ticks is None else sorted(ticks)
    if ticks is None and len(named) > TICKS:
        low, high = math.log2(named[0]), math.log2(named[-1])
        named = [float(f"{2 ** (low + (high - low) * at / (TICKS - 1)):.2g}") for at in range(TICKS)]
    axis.set_xticks(named)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")


def line_of(name: str, kind: str, points: Mapping[float, float] | Sequence[tuple[float, float]]) -> Line:
    """A line with its points in the order of their tokens."""
    pairs = points.items() if isinstance(points, Mapping) else points
    return Line(name, kind, tuple(sorted(pairs)))
