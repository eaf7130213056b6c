"""The method comparison as a picture: score against equivalent tokens, a line per method."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
from matplotlib.figure import Figure

from playground.pocket.comparison.rows import BUDGETS, OWN_RULE, REFERENCE, TEXT_ONLY

MARKERS = "osv^D<>pP*XhdH8"


def draw(path: Path, content: dict[str, Any]) -> None:
    """A PNG; command, revision and seeds stand below it and in its metadata."""
    lines = defaultdict(list)
    levels = {}
    for line in content["rows"]:
        if line["score"] is None or line["table"] == OWN_RULE:
            continue
        if line["name"] in (REFERENCE, TEXT_ONLY):
            levels[line["name"]] = line
        else:
            name = f"{line['name']}, trained" if line["trained"] else line["name"]
            lines[name].append((line["equivalent"], line["score"], line["half"]))
    figure = Figure(figsize=(10.0, 6.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(lines.items()):
        tokens, scores, _ = zip(*sorted(points), strict=True)
        style = "--" if "with" in name else ":" if "trained" in name else "-"
        axes.plot(
            tokens,
            scores,
            style,
            marker=MARKERS[number % len(MARKERS)],
            color=f"C{number % 10}",
            ms=5,
            lw=1,
            label=name,
        )
    for name, line in levels.items():
        axes.axhline(line["score"], color="black", lw=0.8)
        axes.axhspan(line["score"] - line["half"], line["score"] + line["half"], color="black", alpha=0.08, lw=0)
        axes.text(0.01, line["score"], name, va="bottom", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_xscale("log", base=2)
    axes.set_xticks(BUDGETS)
    axes.set(xlabel=f"equivalent tokens of {content['patches']}", ylabel="score, percent")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    seeds = ", ".join(f"{name} {seed}" for name, seed in content["seeds"].items())
    made = f"{content['command']}; revision {content['revision']}; seeds: {seeds}"
    figure.supxlabel(made, fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Description": made})
