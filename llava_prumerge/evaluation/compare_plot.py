"""The comparison of all results as a picture: a panel per benchmark, a line per method with its budgets."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.plots import BOTH, DECODER, TRAINED, VISION, Level, Panel, draw_panels, line_of
from llava_prumerge.methods.base import DecoderPruner
from llava_prumerge.methods.labels import NONE
from llava_prumerge.methods.registry import method_names

TOKENS = "visual tokens, averaged over the decoder's layers"


def kind_of(method: str, trained: bool) -> str:
    """Of a method by its name, that of a pair being joined by +."""
    if trained:
        return TRAINED
    if "+" in method:
        return BOTH
    return DECODER if method in method_names(DecoderPruner) else VISION


def panels_of(shown: Any) -> list[Panel]:
    """A panel per benchmark of a `compare.Comparison`.

    A row without a method is a level across it; one that tells no tokens has no place.
    """
    models = {entry.facts.get("model") for entry in shown.entries}
    panels = []
    for task in shown.tasks:
        levels: list[Level] = []
        points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for entry in shown.entries:
            result = entry.results.get(task)
            if result is None or result.get("value") is None:
                continue
            low, high = result["interval_95"]
            if entry.method == NONE:
                levels.append(Level(_level_name(entry, len(models) > 1), result["value"], (high - low) / 2))
                continue
            tokens = entry.equivalent if entry.equivalent is not None else entry.tokens
            if tokens:
                trained = entry.facts.get("train") not in (None, "none")
                name = f"{entry.method}, {entry.facts['train']}" if trained else entry.method
                name = f"{name} ({entry.facts.get('model')})" if len(models) > 1 else name
                points[name, kind_of(entry.method, trained)].append((tokens, result["value"]))
        lines = [line_of(name, kind, found) for (name, kind), found in points.items()]
        panels.append(Panel(benchmark.find(task).title, lines, levels))
    return panels


def _level_name(entry: Any, several: bool) -> str:
    name = "no images" if entry.facts.get("images") == "off" else "no method"
    return f"{name} ({entry.facts.get('model')})" if several else name


def draw(shown: Any, path: Path) -> None:
    """A PNG of a `compare.Comparison`.

    Raises:
        EvaluationError: no result has both a score and a number of tokens.
    """
    draw_panels(path, panels_of(shown), TOKENS)
