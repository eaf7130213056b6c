"""The method comparison as a picture: score against equivalent tokens, a line per method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.plots import BOTH, DECODER, TRAINED, VISION, Level, Panel, draw_panels, line_of
from playground.pocket.comparison.rows import REFERENCE, TEXT_ONLY


def panels_of(content: dict[str, Any], budgets: Sequence[int]) -> list[Panel]:
    """Vision reducers in one panel, pruners and pairs in another, what was trained in that of its kind."""
    lines: dict[tuple[str, str, bool], list[tuple[float, float]]] = defaultdict(list)
    levels = []
    for line in content["rows"]:
        if line["score"] is None or line["table"] not in ("", *budgets):
            continue
        if line["name"] in (REFERENCE, TEXT_ONLY):
            levels.append(Level(line["name"], line["score"], line["half"]))
        else:
            lines[line["name"], line["kind"], line["trained"]].append((line["equivalent"], line["score"]))
    made: dict[bool, list[Any]] = {True: [], False: []}
    for (name, kind, trained), points in lines.items():
        told = f"{name}, trained" if trained else name
        made[kind == VISION].append(line_of(told, TRAINED if trained else kind, points))
    return [Panel("Vision reducers", made[True], levels), Panel("Decoder pruners, and both kinds", made[False], levels)]


def kind_of(block: Any) -> str:
    """What a row's reduction block is made of."""
    sites = {site for site in ("vision", "decoder") if (block or {}).get(site)}
    return BOTH if len(sites) == 2 else DECODER if sites == {"decoder"} else VISION


def draw(path: Path, content: dict[str, Any], budgets: Sequence[int]) -> None:
    """A PNG; command, revision and seeds stand below it and in its metadata."""
    seeds = ", ".join(f"{name} {seed}" for name, seed in content["seeds"].items())
    made = f"{content['command']}; revision {content['revision']}; seeds: {seeds}"
    draw_panels(path, panels_of(content, budgets), f"equivalent tokens of {content['patches']}", made, budgets)
