"""RESTORE's ablation in the pocket world: each part alone and together on top of reducers, paired, on one page.

    python playground/pocket/restore_ablation.py [--methods fastervlm divprune holov] [--budgets 18 9] [--tasks vqav2]
        [--limit N] [--page docs/results/restore.md]

After `make reproduce`, whose model and benchmarks it uses. All rows run in one process; answers that are there are only
scored again. Every difference is paired: from the same method with everything off, on the same questions.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.evaluation.execution import execute, prepare  # noqa: E402
from llava_prumerge.evaluation.fingerprint import describe_environment  # noqa: E402
from llava_prumerge.evaluation.records import read_object  # noqa: E402
from llava_prumerge.evaluation.results import mean_of_means  # noqa: E402
from llava_prumerge.ground.command import Parser, at_least, command  # noqa: E402
from llava_prumerge.ground.files import write_text  # noqa: E402

logger = logging.getLogger("pocket.restore")

OFF, ALL, FULL = "off", "all", "full"
MERGE, WEIGH, PLACE, CALIBRATE = "anchors=1/2", "proportional=true", "positions=original", "calibration=2"
TEXT_TOO = "calibrated=all"
ROWS: dict[str, tuple[str, ...]] = {
    OFF: (),
    "positions": (PLACE,),
    "calibration": (CALIBRATE,),
    "positions, calibration": (PLACE, CALIBRATE),
    "anchors": (MERGE,),
    "anchors, sizes": (MERGE, WEIGH),
    "anchors, positions": (MERGE, PLACE),
    "anchors, sizes, positions": (MERGE, WEIGH, PLACE),
    "anchors, sizes, calibration": (MERGE, WEIGH, CALIBRATE),
    ALL: (MERGE, WEIGH, PLACE, CALIBRATE),
    "calibration of all keys": (CALIBRATE, TEXT_TOO),
    "all, calibration of all keys": (MERGE, WEIGH, PLACE, CALIBRATE, TEXT_TOO),
}
"""What is on, and its settings. Sizes weigh what anchors merge, so that they are never alone."""
PUBLISHED = {
    OFF: 92.2,
    "positions": 90.6,
    "calibration": 91.0,
    "positions, calibration": 93.1,
    "anchors": 93.5,
    "anchors, positions": 90.1,
    ALL: 96.5,
}
"""HoloV at 64 of 576 tokens of LLaVA-1.5-7B, in percent of the full model, over eight benchmarks; the paper's ablation."""

Marks = dict[str, list[float]]
"""Task -> how right each answer is, 0 to 1."""


class Ablation:
    """What is asked of which model, and what came of it.

    Args:
        model: a folder.
        data: of the benchmarks.
        out: of the result files.
        tasks: benchmarks.
        limit: questions of each; None for all.
    """

    def __init__(self, model: Path, data: Path, out: Path, tasks: Sequence[str], limit: int | None) -> None:
        self.model, self.data, self.out, self.tasks, self.limit = model, data, out, tasks, limit

    def marks(self, method: str) -> Marks:
        """Ask, and score.

        Args:
            method: as `method=` takes it.
        """
        values = {"method": method, "label": method, "model_label": "restore", "train": "none", "batch_size": "64"}
        values |= {"workers": "1"} | ({} if self.limit is None else {"limit": str(self.limit)})
        runs = prepare(str(self.model), ",".join(self.tasks), self.data, self.out, values)
        execute(runs, scored=True)
        return {run.task.name: read_object(run.out / f"{run.task.name}.json")["marks"] for run in runs}

    def rows(self, method: str, budget: int) -> dict[str, Marks]:
        """All rows of one method at one budget."""
        found = {}
        for parts, settings in ROWS.items():
            found[parts] = self.marks(",".join([f"{method}:budget={budget}", *settings]))
            logger.info("%s, %d tokens, %s: %s", method, budget, parts, show(score(found[parts])))
        return found


def score(marks: Marks) -> tuple[float, float]:
    """The mean over tasks of the mean mark, and half of its 95% interval, in points."""
    mean, half = mean_of_means(list(marks.values()))
    return 100 * mean, 100 * half


def difference(own: Marks, other: Marks) -> tuple[float, float]:
    """The paired difference of two rows, as `score`."""
    gaps = {task: [a - b for a, b in zip(own[task], other[task], strict=True)] for task in own}
    return score(gaps)


def average(several: Sequence[Marks]) -> Marks:
    """Each question's mean mark over several methods."""
    return {task: [sum(marks) / len(marks) for marks in zip(*(one[task] for one in several))] for task in several[0]}


def show(found: tuple[float, float], sign: str = "") -> str:
    """A number with half of its interval; bold where a difference's excludes 0."""
    text = f"{found[0]:{sign}.1f} ± {found[1]:.1f}"
    return f"**{text}**" if sign and abs(found[0]) > found[1] else text


def table(found: Mapping[str, Mapping[str, Marks]]) -> str:
    """One budget: the score with everything off, and what the parts change, method by method and over all.

    Args:
        found: method -> row -> marks.
    """
    whole = {parts: average([rows[parts] for rows in found.values()]) for parts in ROWS}
    columns = {**found, "all of them": whole} if len(found) > 1 else dict(found)
    lines = [["on", *columns, "paper"], ["---", *["---:"] * (len(columns) + 1)]]
    for parts in ROWS:
        cells = []
        for rows in columns.values():
            cells.append(show(score(rows[OFF])) if parts == OFF else show(difference(rows[parts], rows[OFF]), "+"))
        told = PUBLISHED.get(parts)
        paper = "" if told is None else f"{told}" if parts == OFF else f"{told - PUBLISHED[OFF]:+.1f}"
        lines.append([parts, *cells, paper])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(command_line: str, full: Marks, found: Mapping[int, Mapping[str, Mapping[str, Marks]]]) -> str:
    """The whole file.

    Args:
        command_line: what made it.
        full: marks of the full model.
        found: budget -> method -> row -> marks.
    """
    told: dict[str, Any] = describe_environment()
    versions = told["versions"]
    asked = ", ".join(f"{task} {len(marks)}" for task, marks in full.items())
    parts = [
        f"""# RESTORE, part by part

Command: `{command_line}`. Revision: {told["revision"]}. torch {versions["torch"]}, transformers {versions["transformers"]}. This file is written by the command.

Pocket world: a small LLaVA on generated scenes, 144 patches, 6 decoder layers; {asked} questions. The full model has {show(score(full))}.

- First row: the method as it is, in percent, with its 95% interval over questions. All others: the paired difference from that row on the same
  questions, in points, with its 95% interval; **bold** where that excludes 0.
- *anchors*: half of the budget gathers what the method drops; *sizes*: log s on what stands for s patches; *positions*: those of the patches;
  *calibration*: log(2 - D) on visual tokens, or on all. See [the methods' page](../methods.md#restore-on-top-of-any-reducer).
- *paper*: RESTORE's own ablation, HoloV with 64 of 576 tokens on LLaVA-1.5-7B: percent of the full model, and points of it. It does not say
  whether its merging without calibration weighs sizes.
"""
    ]
    parts += [f"## {budget} of 144 tokens\n\n{table(rows)}" for budget, rows in found.items()]
    return "\n".join(parts)


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.restore_ablation", __doc__)
    parser.add_argument(
        "--methods", nargs="+", default=["fastervlm", "divprune", "holov"], help="reducers with a budget"
    )
    parser.add_argument("--budgets", nargs="+", type=at_least(2), default=[18, 9], help="tokens of 144 that stay")
    parser.add_argument("--tasks", nargs="+", default=["vqav2"], help="benchmarks (default: %(default)s)")
    parser.add_argument("--limit", type=at_least(1), help="questions of each benchmark (default: all)")
    runs, data = ROOT / "runs", ROOT / "playground/pocket/data/eval"
    parser.add_argument("--model", type=Path, default=runs / "pocket-lora-none/merged", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, default=data, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=runs / "restore", help="of the results (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results/restore.md", help="(default: %(default)s)")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    ablation = Ablation(given.model, given.data, given.out, given.tasks, given.limit)
    full = ablation.marks("none")
    found = {budget: {method: ablation.rows(method, budget) for method in given.methods} for budget in given.budgets}
    command_line = " ".join(["python", "playground/pocket/restore_ablation.py", *words])
    write_text(given.page, page(command_line, full, found))
    logger.info("%s: written", given.page)


if __name__ == "__main__":
    sys.exit(main())
