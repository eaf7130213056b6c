"""The page of the video comparison, from result files: `python -m playground.pocket.video.table RESULTS PAGE`."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.results import mean_of_means
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.files import write_text
from llava_prumerge.ground.reading import read_json_object

TASKS = {"msvd_qa": "MSVD", "msrvtt_qa": "MSRVTT", "tgif_qa": "TGIF", "activitynet_qa": "ActivityNet"}
FULL = "all tokens"
HEAD = """# Pocket videos

The paper's Table 3 in the pocket world: short clips of moving shapes in the four benchmarks' files, asked of a pocket
Video-LLaVA that was trained with all tokens of four frames. Methods act on each frame, training-free, unless a row says
otherwise: *over all frames*, a budget for the clip as a whole; *trained*, a model that learnt with the method in place.
A frame's class token always stays. Accuracy is the share of answers that equal the truth in VQA's normal form, without
a judge. Differences are paired with all tokens on the same questions, with 95% intervals; random is the mean of three
seeds. Temporal questions stand apart: none of TGIF's can be answered from one frame, all of MSVD's can.

Command: `make reproduce-video`. This file is written by it.

"""


@dataclass(frozen=True)
class Row:
    """One row: a name, its tokens of a frame ("" for all), the settings of its evaluation, the seed of one of several.

    `model` is the method that was in place when the model learnt, "none" for all tokens.
    """

    name: str
    budget: int | str
    settings: tuple[str, ...]
    seed: int | None = None
    model: str = "none"

    @property
    def label(self) -> str:
        """Unique among all rows."""
        words = [self.name, *([str(self.budget)] if self.budget != "" else [])]
        return " ".join([*words, *([] if self.seed is None else [f"seed {self.seed}"])])


def read(results: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Result files by row's label and task.

    Raises:
        InputError: there is none, or the row with all tokens is missing.
    """
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for file in sorted(results.rglob("*.json")):
        values = read_json_object(file)
        if values.get("task") in TASKS and isinstance(values.get("row"), dict):
            found[values["row"]["label"]][values["task"]] = values
    if FULL not in found or set(found[FULL]) != set(TASKS):
        raise InputError(
            f"{results}: results of {FULL!r} are missing; python playground/pocket/video/reproduce.py makes them"
        )
    return dict(found)


def merged(rows: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Marks of each question by task, averaged over the seeds of a row."""
    every = list(rows)
    return {
        task: [statistics.fmean(marks) for marks in zip(*(one[task]["marks"] for one in every), strict=True)]
        for task in TASKS
    }


def line(label: str, rows: list[Mapping[str, Mapping[str, Any]]], full: Mapping[str, Mapping[str, Any]]) -> str:
    """A line of the table."""
    marks, reference = merged(rows), merged([full])
    scores = {task: 100 * statistics.fmean(found) for task, found in marks.items()}
    difference, half = mean_of_means(
        [[one - other for one, other in zip(marks[task], reference[task], strict=True)] for task in TASKS]
    )
    kept = (
        statistics.fmean(one[task]["kept"]["mean"] for one in rows for task in TASKS)
        if rows[0]["msvd_qa"].get("kept")
        else 0
    )
    told = "" if label == FULL else f"{100 * difference:+.1f} ± {100 * half:.1f}"
    cells = [
        label,
        f"{kept:.0f}",
        *(f"{scores[task]:.1f}" for task in TASKS),
        f"{statistics.fmean(scores.values()):.1f}",
        told,
    ]
    return "| " + " | ".join(cells) + " |"


def page(results: Path) -> str:
    """The whole page."""
    found = read(results)
    groups: dict[str, list[Mapping[str, Mapping[str, Any]]]] = defaultdict(list)
    for label, tasks in found.items():
        if set(tasks) == set(TASKS):
            groups[label.partition(" seed ")[0]].append(tasks)
    order = sorted(
        groups,
        key=lambda label: (label != FULL, -statistics.fmean(map(statistics.fmean, merged(groups[label]).values()))),
    )
    heads = ["method, tokens of a frame", "tokens of a clip", *TASKS.values(), "mean", "against all tokens"]
    table = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    table += [line(label, groups[label], found[FULL]) for label in order]
    return HEAD + "\n".join(table) + "\n"


@command()
def main(words: list[str]) -> int:
    """Write it."""
    parser = Parser(prog="python -m playground.pocket.video.table", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args(words)
    given.page.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.page, page(given.results))
    print(given.page)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
