"""What the comparison on photographs answers: who beats chance and pooling, what merging does, whether the pocket world foretold it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import correlation
from typing import TYPE_CHECKING, Any

from llava_prumerge.ground.reading import read_json_object
from playground.pocket.comparison.rows import PRUMERGE

if TYPE_CHECKING:
    from playground.pocket.comparison.report import Evaluated
    from playground.pocket.comparison.rows import Row, Table
    from playground.pocket.comparison.study import Content

CONTROLS = ("random", "uniform", "pool")
"""What a method has to beat to be worth its name."""
CHANCE = (*CONTROLS, "first", "grid", "downsample")
"""Rows that are nobody's method."""
POCKET = Path("docs/results/methods.json")
ALIKE = {192: 72, 128: 36, 64: 18, 32: 9}
"""Tokens of 576 -> the pocket world's of 144 that are the nearest share of them: a third and a half, then all but equal."""
UNMERGED = "per head, nothing merged, no extra token"
Line = tuple[str, "Table", bool]
"""Name, table, whether it was trained."""


def more(content: Content, evaluated: Evaluated) -> Content:
    """All that `told` needs beside the rows."""
    scored = {(line["name"], line["table"], line["trained"]) for line in content["rows"] if line["score"] is not None}
    lines = {line: rows for line, rows in evaluated.lines().items() if line in scored}
    images = evaluated.scale.images or {}
    seen = {(task, image) for task, own in images.items() for image in own if image is not None}
    manifest = read_json_object(evaluated.places.data / "manifest.json")["settings"]
    return {
        "data": {key: manifest[key] for key in ("painted_on", "seed", "scale")},
        "images": len(seen),
        "about_images": sum(image is not None for own in images.values() for image in own),
        "against": against_controls(evaluated, lines),
        "merging": against_one(evaluated, lines, "merging", UNMERGED),
        "trained": trained(evaluated, lines),
        "positions": positions(evaluated, lines),
        "order": order(content),
    }


def gap(evaluated: Evaluated, own: Sequence[Row], other: Sequence[Row]) -> list[float]:
    """The paired difference of two lines, and half of its interval."""
    return list(evaluated.scale.difference(evaluated.marks(own), evaluated.marks(other)))


def against_controls(evaluated: Evaluated, lines: dict[Line, list[Row]]) -> list[dict[str, Any]]:
    """Each training-free line of a budget against each control of the same budget."""
    found = []
    for (name, table, was_trained), rows in lines.items():
        if not isinstance(table, int) or was_trained or name in CONTROLS:
            continue
        gaps = {
            control: gap(evaluated, rows, lines[control, table, False])
            for control in CONTROLS
            if (control, table, False) in lines
        }
        found.append({"name": name, "table": table, "gaps": gaps})
    return found


def against_one(evaluated: Evaluated, lines: dict[Line, list[Row]], table: str, base: str) -> list[dict[str, Any]]:
    """Each line of a table against one of them."""
    if (base, table, False) not in lines:
        return []
    own = [(name, rows) for (name, of, _), rows in lines.items() if of == table and name != base]
    return [{"name": name, "gap": gap(evaluated, rows, lines[base, table, False])} for name, rows in own]


def trained(evaluated: Evaluated, lines: dict[Line, list[Row]]) -> list[dict[str, Any]]:
    """What training with a method in place gained over the same method without."""
    made = []
    for (name, table, was_trained), rows in lines.items():
        free = lines.get((name, table, False)) or lines.get(
            (f"per head, {name.removeprefix(f'{PRUMERGE}, ')}", "merging", False)
        )
        if was_trained and free:
            made.append({"name": name, "table": table, "gap": gap(evaluated, rows, free)})
    tuned = {name: rows for (name, _, was_trained), rows in lines.items() if was_trained}
    plain = next((name for name in tuned if "nothing merged" in name), None)
    if plain and PRUMERGE in tuned:
        made.append(
            {"name": f"{PRUMERGE} against {plain}, both trained", "gap": gap(evaluated, tuned[PRUMERGE], tuned[plain])}
        )
    return made


def positions(evaluated: Evaluated, lines: dict[Line, list[Row]]) -> list[dict[str, Any]]:
    """What the positions of the patches are worth, method by method."""
    made = []
    for (name, table, _), rows in lines.items():
        kept = lines.get((name.replace("numbered anew", "places kept"), table, False))
        if table == "positions" and kept and name.endswith("numbered anew"):
            made.append({"name": name.removesuffix(", numbered anew"), "gap": gap(evaluated, kept, rows)})
    return made


def order(content: Content) -> list[dict[str, Any]]:
    """Rank correlation between the scores here and those of the pocket world, over the training-free methods of both."""
    if not POCKET.is_file():
        return []
    pocket = json.loads(POCKET.read_text("utf-8"))["rows"]
    made = []
    for table, alike in ALIKE.items():
        here, there = scores(content["rows"], table), scores(pocket, alike)
        for kind, names in (("all", here.keys() & there.keys()), ("methods", (here.keys() & there.keys()) - {*CHANCE})):
            both = sorted(names)
            if len(both) > 3:
                value = correlation(*(ranks([scores_of[name] for name in both]) for scores_of in (here, there)))
                made.append(
                    {"table": table, "pocket": alike, "over": kind, "n": len(both), "rank_correlation": value}
                    | {"interval": fisher(value, len(both))}
                )
    return made


def scores(rows: Iterable[dict[str, Any]], table: int) -> dict[str, float]:
    """Of the training-free lines of one table."""
    return {
        row["name"]: row["score"]
        for row in rows
        if row["table"] == table and not row["trained"] and row["score"] is not None
    }


def ranks(values: Sequence[float]) -> list[float]:
    """Each value's rank from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def fisher(value: float, n: int) -> list[float]:
    """A 95% interval of a rank correlation by Fisher's transformation, with the variance 1.06 / (n - 3) of Fieller et al. (1957)."""
    if 1 - abs(value) < 1e-9:
        return [value, value]
    middle, half = math.atanh(value), 1.96 * math.sqrt(1.06 / (n - 3))
    return [math.tanh(middle - half), math.tanh(middle + half)]


def shown(found: Sequence[float] | None) -> str:
    """A difference with half of its interval, bold where that excludes 0."""
    if found is None:
        return ""
    text = f"{found[0]:+.1f} ± {found[1]:.1f}"
    return f"**{text}**" if abs(found[0]) > found[1] else text


def told(content: Content) -> str:
    """The answers, as Markdown."""
    parts = [beaten(content), foretold(content), merged(content), placed(content)]
    return "\n".join(part for part in parts if part)


def beaten(content: Content) -> str:
    """Which methods beat the controls."""
    if not content["against"]:
        return ""
    budgets = list(dict.fromkeys(entry["table"] for entry in content["against"]))
    lines = ["## Who beats random, uniform and pooled tokens\n"]
    for budget in budgets:
        own = [entry for entry in content["against"] if entry["table"] == budget and entry["name"] not in CHANCE]
        best = [entry for entry in own if all(low(found) > 0 for found in entry["gaps"].values())]
        lines.append(f"- {budget} tokens: {len(best)} of {len(own)} beat all three: {listed(best)}.")
        for control in CONTROLS:
            worse = [entry for entry in own if control in entry["gaps"] and -sum(entry["gaps"][control]) > 0]
            if worse:
                lines.append(f"  Below {control}: {listed(worse)}.")
    lines += [
        "\nDifferences from random / uniform / pooled tokens at the same budget, paired; **bold** where the 95% interval excludes 0.\n",
        f"| method | {' | '.join(f'{budget} tokens' for budget in budgets)} |",
        f"| --- |{' --- |' * len(budgets)}",
    ]
    cells: dict[str, dict[int, str]] = {}
    rank: dict[str, float] = {}
    for entry in content["against"]:
        told_gaps = (entry["gaps"].get(control) for control in CONTROLS)
        cells.setdefault(entry["name"], {})[entry["table"]] = " / ".join(bare(found) for found in told_gaps)
        rank[entry["name"]] = max(rank.get(entry["name"], -100.0), *(found[0] for found in entry["gaps"].values()))
    for name in sorted(cells, key=lambda name: -rank[name]):
        lines.append(f"| {name} | {' | '.join(cells[name].get(budget, '') for budget in budgets)} |")
    return "\n".join(lines) + "\n"


def low(found: Sequence[float]) -> float:
    """The lower end of a difference's interval."""
    return found[0] - found[1]


def bare(found: Sequence[float] | None) -> str:
    """A difference without its interval."""
    if found is None:
        return "?"
    return f"**{found[0]:+.1f}**" if abs(found[0]) > found[1] else f"{found[0]:+.1f}"


def listed(entries: Sequence[dict[str, Any]]) -> str:
    """Names, or none."""
    return ", ".join(entry["name"] for entry in entries) or "none"


def foretold(content: Content) -> str:
    """Whether the pocket world's order of methods is that of the photographs."""
    if not content["order"]:
        return ""
    lines = [
        "## Does the pocket world foretell the order?\n",
        "Rank correlation (Spearman) of the scores of methods that have a row in both comparisons ([methods.md](methods.md)), with its "
        "95% interval; *all* includes random, uniform, grid, first, pooled and resized.\n",
        "| tokens of 576 | of 144 | over | rows | rank correlation |",
        "| ---: | ---: | --- | ---: | ---: |",
    ]
    for one in content["order"]:
        low_end, high_end = one["interval"]
        lines.append(
            f"| {one['table']} | {one['pocket']} | {one['over']} | {one['n']} | "
            f"{one['rank_correlation']:.2f} [{low_end:.2f}, {high_end:.2f}] |"
        )
    return "\n".join(lines) + "\n"


def merged(content: Content) -> str:
    """What merging does, without training and with it."""
    lines = []
    if content["merging"]:
        lines += [
            "Training-free, the same choice of 64 tokens: difference from merging nothing.\n",
            *table(("what is merged", "difference"), [(one["name"], shown(one["gap"])) for one in content["merging"]]),
        ]
    if content["trained"]:
        lines += [
            "\nTrained with the method in place, against the same method on the full model's weights where nothing else is said:\n",
            *table(("method", "difference"), [(one["name"], shown(one["gap"])) for one in content["trained"]]),
        ]
    return "\n".join(["## Does merging help?\n", *lines]) + "\n" if lines else ""


def placed(content: Content) -> str:
    """What positions are worth."""
    if not content["positions"]:
        return ""
    rows = [(one["name"], shown(one["gap"])) for one in content["positions"]]
    lines = [
        "## How much is the positions?\n",
        "The same tokens with the positions of their patches, against one position after the other:\n",
        *table(("method", "difference"), rows),
    ]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, all columns but the first to the right."""
    return [
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
