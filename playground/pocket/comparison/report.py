"""Makes the comparison's tables, JSON and plot from what was evaluated and timed.

python -m playground.pocket.comparison.report --runs DIR --root DIR --out docs/results [--command TEXT]
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.fingerprint import describe_environment
from llava_prumerge.evaluation.prompts import picture_of
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import mean_of_means, mean_over_clusters, read_results
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.methods.resolve import stored_reduction
from playground.pocket.comparison import drawing, pages
from playground.pocket.comparison.places import Places, add_places
from playground.pocket.comparison.rows import REFERENCE, SEEDS, Row, Table

logger = logging.getLogger("pocket.comparison")
Results = dict[str, dict[str, dict[str, Any]]]
"""Label -> task -> result."""
Marks = dict[str, list[float]]
"""Task -> marks of its questions."""


@dataclass(frozen=True)
class Entry:
    """One line of a table; scores in percent, each interval as half of its width.

    Attributes:
        name, table, trained, settings: of the row (`rows.Row`).
        kind: what its method is made of, see `evaluation.plots`.
        why: reason for a blank line; everything below is then None.
        score, half: see `Scale`.
        difference, difference_half: paired, from the full model.
        tasks: score of each.
        kept: visual tokens an image leaves the reducer with; `equivalent`: averaged over the decoder's layers.
        prefill_ms, share_of_full: CPU time per image, and in percent of the full model's.
        seeds: the score of each seed, where there are several.
    """

    name: str
    table: Table
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


def marks_of(results: Results, label: str, tasks: Sequence[str]) -> Marks:
    """Marks of each task, of the same questions as the full model's, or an error that names what is missing."""
    found = results.get(label, {})
    for task in tasks:
        if task not in found:
            raise EvaluationError(f"there is no result for {label!r} on {task}: run the evaluation of its table first")
        own, full = found[task], results[REFERENCE][task]
        same = own["generation"]["questions"] == full["generation"]["questions"]
        if own["generation"]["images"] == "off":  # the digest holds the images' names
            same = len(own["marks"]) == len(full["marks"])
        if not same:
            raise EvaluationError(f"{label!r} was asked other questions of {task} than {REFERENCE!r}")
    return {task: found[task]["marks"] for task in tasks}


def average_marks(several: list[Marks]) -> Marks:
    """Each question's mean mark over several seeds."""
    return {task: [fmean(marks) for marks in zip(*(one[task] for one in several), strict=True)] for task in several[0]}


def images_of(task: str, data: Path) -> list[str | None]:
    """What each mark of a benchmark's results is about: the image of its question, None for a question without one.

    Args:
        task: its name.
        data: the folder of the benchmarks.
    """
    asked = benchmark.find(task)
    files = asked.files(data)
    path = files.need("questions")
    seen = {
        asked.answer_key({"question_id": question.id, "prompt": question.prompt}, path): picture_of(question)
        for question in asked.questions(files)
    }
    return [seen[key] for key in asked.references(files)]


@dataclass(frozen=True)
class Scale:
    """How marks come to a score.

    Attributes:
        images: of each task's marks, where the score is over all questions about images; None where it is over tasks.
    """

    images: dict[str, list[str | None]] | None = None

    def score(self, marks: Marks) -> tuple[float, float]:
        """Mean and half of its 95% interval, in percent."""
        if self.images is None:
            mean, half = mean_of_means(list(marks.values()))
        else:
            about = [
                (mark, (task, image))
                for task, own in marks.items()
                for mark, image in zip(own, self.images[task], strict=True)
                if image is not None
            ]
            mean, half = mean_over_clusters([mark for mark, _ in about], [image for _, image in about])
        return 100 * mean, 100 * half

    def difference(self, own: Marks, other: Marks) -> tuple[float, float]:
        """The paired difference of two rows, and half of its 95% interval, in points."""
        return self.score(
            {task: [one - two for one, two in zip(marks, other[task], strict=True)] for task, marks in own.items()}
        )


@dataclass(frozen=True)
class Evaluated:
    """Everything that was evaluated.

    Attributes:
        places: of it.
        results: of it.
        scale: of its scores.
        partial: lines without all results stay blank.
    """

    places: Places
    results: Results
    scale: Scale
    partial: bool = False

    @property
    def tasks(self) -> Sequence[str]:
        """The benchmarks."""
        return self.places.study.tasks

    def marks(self, rows: Sequence[Row]) -> Marks:
        """The marks of a line, averaged over the rows of several seeds."""
        return average_marks([marks_of(self.results, row.label, self.tasks) for row in rows])

    def is_whole(self, row: Row) -> bool:
        """Whether a row has all its results."""
        return set(self.tasks) <= self.results.get(row.label, {}).keys()

    def entry(self, rows: list[Row]) -> Entry:
        """One line from a row, or from the rows of several seeds."""
        row, results, places = rows[0], self.results, self.places
        known = row.block is not None or (self.partial and not places.model(row.model).is_dir())
        block = row.block if known else stored_reduction(places.model(row.model))
        about = Entry(row.name, row.table, row.trained, row.settings, drawing.kind_of(block), row.why)
        if row.why:
            return about
        if self.partial and not all(self.is_whole(one) for one in rows):
            return replace(about, why=f"{row.name}: not evaluated yet")
        marks = self.marks(rows)
        score, half = self.scale.score(marks)
        difference, difference_half = self.scale.difference(marks, marks_of(results, REFERENCE, self.tasks))
        kept = [found["kept"] for task in self.tasks if (found := results[row.label][task])["kept"] is not None]
        told = {key: fmean(one[key] for one in kept) for key in ("mean", "equivalent")} if kept else {}
        path = places.prefills / f"{row.stem}.json"
        timed = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        seeds = [self.scale.score(self.marks([one]))[0] for one in rows]
        return Entry(
            **{key: getattr(about, key) for key in ("name", "table", "trained", "settings", "kind")},
            score=score,
            half=half,
            difference=difference,
            difference_half=difference_half,
            tasks={task: 100 * fmean(own) for task, own in marks.items()},
            kept=told.get("mean"),
            equivalent=told.get("equivalent"),
            prefill_ms=timed.get("prefill_ms"),
            share_of_full=None if not timed else 100 * timed["share_of_full"],
            seeds=seeds if len(seeds) > 1 else None,
        )

    def lines(self) -> dict[tuple[str, Table, bool], list[Row]]:
        """The rows of each line, by its name, table and whether it was trained, in the order of the rows."""
        together: dict[tuple[str, Table, bool], list[Row]] = defaultdict(list)
        for row in self.places.rows():
            together[row.name, row.table, row.trained].append(row)
        return together


def read_evaluated(places: Places, partial: bool = False) -> Evaluated:
    """All result files of a comparison.

    Raises:
        EvaluationError: there is none of the full model.
    """
    tasks = places.study.tasks
    results: Results = defaultdict(dict)
    for _, result in read_results([places.results], tasks):
        results[result["row"]["label"]][result["task"]] = result
    if REFERENCE not in results:
        raise EvaluationError(f"{places.results} has no result of {REFERENCE!r}, which all rows are compared with")
    images = {task: images_of(task, places.data) for task in tasks} if places.study.by_image else None
    return Evaluated(places, results, Scale(images), partial)


def collect(places: Places, command: str, partial: bool = False) -> dict[str, Any]:
    """Everything the files say, JSON-ready.

    Raises:
        EvaluationError: a row has no result, or one of other questions.
    """
    evaluated, study = read_evaluated(places, partial), places.study
    entries = [evaluated.entry(rows) for rows in evaluated.lines().values()]
    environment, reference = describe_environment(), evaluated.results[REFERENCE]
    revisions = {str(one["revision"]) for task in evaluated.results.values() for one in task.values()}
    content = {
        "command": command,
        "revision": environment["revision"],
        "revisions_of_results": sorted(revisions),
        "versions": environment["versions"],
        "seeds": {**study.seeds, "random": list(SEEDS)},
        "questions": {task: reference[task]["n"] for task in study.tasks},
        "tasks": {task: reference[task]["title"] for task in study.tasks},
        "patches": study.patches,
        "rows": [asdict(entry) for entry in entries],
    }
    return {**content, **study.more(content, evaluated)}


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.report", __doc__)
    add_places(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--command", default="python -m playground.pocket.comparison.report", help="for the first lines"
    )
    parser.add_argument("--partial", action="store_true", help="leave lines blank that were not evaluated yet")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = Places.read(given)
    content, name = collect(places, given.command, given.partial), places.study.name
    write_json(given.out / f"{name}.json", content, indent=1)
    write_text(given.out / f"{name}.md", pages.page(content, places.study))
    drawing.draw(given.out / f"{name}.png", content, places.study.budgets)
    logger.info("%s: %s.md, %s.json, %s.png", given.out, name, name, name)


if __name__ == "__main__":
    sys.exit(main())
