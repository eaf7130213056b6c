"""Makes the comparison's tables, JSON and plot from what was evaluated and timed.

python -m playground.pocket.comparison.report --runs DIR --root DIR --out docs/results [--command TEXT]
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from llava_prumerge.evaluation.fingerprint import describe_environment
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import mean_of_means, read_results
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.methods.resolve import stored_reduction
from llava_prumerge.model.loading import load_model
from playground.pocket.comparison import drawing, pages
from playground.pocket.comparison.places import TASKS, Places
from playground.pocket.comparison.questions import SEED
from playground.pocket.comparison.rows import REFERENCE, SEEDS, Row, all_rows

logger = logging.getLogger("pocket.comparison")
Results = dict[str, dict[str, dict[str, Any]]]
"""Label -> task -> result."""


@dataclass(frozen=True)
class Entry:
    """One line of a table; scores in percent, each interval as half of its width.

    Attributes:
        name, table, trained, settings: of the row (`rows.Row`).
        kind: what its method is made of, see `evaluation.plots`.
        why: reason for a blank line; everything below is then None.
        score, half: mean over the tasks of the mean over their questions.
        difference, difference_half: paired, from the full model.
        tasks: score of each.
        kept: visual tokens an image leaves the reducer with; `equivalent`: averaged over the decoder's layers.
        prefill_ms, share_of_full: CPU time per image, and in percent of the full model's.
        seeds: the score of each seed, where there are several.
    """

    name: str
    table: int | str
    trained: bool
    settings: str
    kind: str
    why: str = ""
    score: float | None = None
    half: float | None = None
    difference: float | None = None
    difference_half: float | None = None
    tasks: dict[str, float] | None = None
    kept: float | None = None
    equivalent: float | None = None
    prefill_ms: float | None = None
    share_of_full: float | None = None
    seeds: list[float] | None = None


def marks_of(results: Results, label: str) -> dict[str, list[float]]:
    """Marks of each task, of the same questions as the full model's, or an error that names what is missing."""
    found = results.get(label, {})
    for task in TASKS:
        if task not in found:
            raise EvaluationError(f"there is no result for {label!r} on {task}: run the evaluation of its table first")
        own, full = found[task], results[REFERENCE][task]
        same = own["generation"]["questions"] == full["generation"]["questions"]
        if own["generation"]["images"] == "off":  # the digest holds the images' names
            same = len(own["marks"]) == len(full["marks"])
        if not same:
            raise EvaluationError(f"{label!r} was asked other questions of {task} than {REFERENCE!r}")
    return {task: found[task]["marks"] for task in TASKS}


def average_marks(several: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Each question's mean mark over several seeds."""
    return {task: [fmean(marks) for marks in zip(*(one[task] for one in several), strict=True)] for task in TASKS}


def make_entry(rows: list[Row], results: Results, places: Places) -> Entry:
    """One line from a row, or from the rows of several seeds."""
    row = rows[0]
    block = stored_reduction(places.model(row.model)) if row.block is None else row.block
    about = Entry(row.name, row.table, row.trained, row.settings, drawing.kind_of(block), row.why)
    if row.why:
        return about
    each = [marks_of(results, one.label) for one in rows]
    marks, reference = average_marks(each), marks_of(results, REFERENCE)
    score, half = mean_of_means([marks[task] for task in TASKS])
    gaps = [[own - full for own, full in zip(marks[task], reference[task], strict=True)] for task in TASKS]
    difference, difference_half = mean_of_means(gaps)
    kept = [results[row.label][task]["kept"] for task in TASKS]
    told = {} if kept[0] is None else {key: fmean(one[key] for one in kept) for key in ("mean", "equivalent")}
    path = places.prefills / f"{row.stem}.json"
    timed = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    seeds = [100 * mean_of_means([one[task] for task in TASKS])[0] for one in each]
    return Entry(
        **{key: getattr(about, key) for key in ("name", "table", "trained", "settings", "kind")},
        score=100 * score,
        half=100 * half,
        difference=100 * difference,
        difference_half=100 * difference_half,
        tasks={task: 100 * fmean(marks[task]) for task in TASKS},
        kept=told.get("mean"),
        equivalent=told.get("equivalent"),
        prefill_ms=timed.get("prefill_ms"),
        share_of_full=None if not timed else 100 * timed["share_of_full"],
        seeds=seeds if len(seeds) > 1 else None,
    )


def make_entries(rows: list[Row], results: Results, places: Places) -> list[Entry]:
    """All lines, in the order of the rows."""
    together: dict[tuple[str, int | str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        together[row.name, row.table, row.trained].append(row)
    return [make_entry(group, results, places) for group in together.values()]


def adaptivity(row: Row, places: Places) -> dict[str, Any]:
    """What an adaptive method did to each image and in each layer, from its prefills; its target, where it has one."""
    visual = json.loads((places.prefills / f"{row.stem}.json").read_text("utf-8"))["visual"]  # [B, layers]
    each = [fmean(layers) for layers in visual]
    model, _ = load_model(places.model(row.model), row.block, device="cpu")
    return {
        "name": row.name,
        "table": row.table,
        "target": getattr(model.model.language_model.pruner, "target", None),
        "images": len(each),
        "mean": fmean(each),
        "least": min(each),
        "most": max(each),
        "deviation": stdev(each),
        "different": len({tuple(layers) for layers in visual}),
        "layer_tokens": [fmean(layer) for layer in zip(*visual, strict=True)],
        "layer_least": [min(layer) for layer in zip(*visual, strict=True)],
        "layer_most": [max(layer) for layer in zip(*visual, strict=True)],
    }


def collect(places: Places, command: str) -> dict[str, Any]:
    """Everything the files say, JSON-ready.

    Raises:
        EvaluationError: a row has no result, or one of other questions.
    """
    results: Results = defaultdict(dict)
    for _, result in read_results([places.results], TASKS):
        results[result["row"]["label"]][result["task"]] = result
    rows = all_rows(places.found)
    if REFERENCE not in results:
        raise EvaluationError(f"{places.results} has no result of {REFERENCE!r}, which all rows are compared with")
    entries = make_entries(rows, results, places)
    environment = describe_environment()
    own_counts = [row for row in rows if row.trained and row.name == "ATP-LLaVA"]
    return {
        "command": command,
        "revision": environment["revision"],
        "revisions_of_results": sorted({str(one["revision"]) for task in results.values() for one in task.values()}),
        "versions": environment["versions"],
        "seeds": {"questions": SEED, "training": 42, "random": list(SEEDS), "search": 0},
        "questions": {task: results[REFERENCE][task]["n"] for task in TASKS},
        "tasks": {task: results[REFERENCE][task]["title"] for task in TASKS},
        "patches": 144,
        "rows": [asdict(entry) for entry in entries],
        "adaptive": [adaptivity(row, places) for row in own_counts],
    }


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.report", __doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--command", default="python -m playground.pocket.comparison.report", help="for the first lines"
    )
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    content = collect(Places(given.runs, given.root), given.command)
    write_json(given.out / "methods.json", content, indent=1)
    write_text(given.out / "methods.md", pages.page(content))
    drawing.draw(given.out / "methods.png", content)
    logger.info("%s: methods.md, methods.json, methods.png", given.out)


if __name__ == "__main__":
    sys.exit(main())
