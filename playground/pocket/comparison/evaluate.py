"""Answers and scores the questions for all rows of one table, in one process.

    python -m playground.pocket.comparison.evaluate --runs DIR --root DIR --table 72

Each row is what `python -m eval.run run` does with its method file; complete answers are only scored
again, after a check that they are this model's.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import yaml

from llava_prumerge.evaluation.execution import execute, prepare
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_text
from playground.pocket.comparison.places import TASKS, Places
from playground.pocket.comparison.rows import Row, all_rows, tables

logger = logging.getLogger("pocket.comparison")
BATCH = 64


def method_of(row: Row, places: Places) -> str | None:
    """The method file of a row, as `method=` takes it; None for what the checkpoint says."""
    if not row.block:
        return None if row.block is None else "none"
    path = places.root / "methods" / f"{row.stem}.yaml"
    write_text(path, f"# {row.label}\n{yaml.safe_dump(dict(row.block), sort_keys=False)}")
    return str(path)


def evaluate(row: Row, places: Places) -> None:
    """Make the result files of one row."""
    values = {"label": row.label, "model_label": "pocket", "images": row.images, "batch_size": str(BATCH)}
    values |= {"train": "lora" if row.trained or not row.block else "none", "workers": "1"}
    method = method_of(row, places)
    if method is not None:
        values["method"] = method
    runs = prepare(str(places.model(row.model)), ",".join(TASKS), places.data, places.results, values)
    execute(runs, scored=True)
    logger.info("%s: done", row.label)


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.evaluate", __doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--table", required=True, choices=[str(table) for table in tables()])
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    places = Places(given.runs, given.root)
    rows = [row for row in all_rows(places.found) if str(row.table) == given.table and not row.why]
    for number, row in enumerate(rows, start=1):
        logger.info("row %d of %d: %s", number, len(rows), row.label)
        evaluate(row, places)


if __name__ == "__main__":
    sys.exit(main())
