"""Answers and scores the questions for all rows of one table, in one process.

    python -m playground.pocket.comparison.evaluate --runs DIR --root DIR --table 72

Each row is what `python -m eval.run run` does with its method file; complete answers are only scored
again, after a check that they are this model's.
"""

from __future__ import annotations

import logging
import sys

import yaml

from llava_prumerge.evaluation.execution import execute, prepare
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_text
from llava_prumerge.methods.registry import build_reducer
from playground.pocket.comparison.places import Places, add_places
from playground.pocket.comparison.rows import Row

logger = logging.getLogger("pocket.comparison")
REFERENCES = "references"


def method_of(row: Row, places: Places) -> str | None:
    """The method file of a row, as `method=` takes it; None for what the checkpoint says."""
    if not row.block:
        return None if row.block is None else "none"
    path = places.root / "methods" / f"{row.stem}.yaml"
    write_text(path, f"# {row.label}\n{yaml.safe_dump(dict(row.block), sort_keys=False)}")
    return str(path)


def settings_of(row: Row, places: Places) -> dict[str, str]:
    """What `eval.run` is told of a row."""
    study = places.study
    values = {**study.settings, "label": row.label, "model_label": study.model_label, "images": row.images}
    if row.block and not row.trained:
        values["train"] = "none"
    vision = (row.block or {}).get("vision")
    if vision is not None and build_reducer(vision).cuts:
        values.pop("tower_cache", None)  # which keeps what a whole tower makes
    return values


def evaluate(row: Row, places: Places) -> None:
    """Make the result files of one row."""
    values, method = settings_of(row, places), method_of(row, places)
    if method is not None:
        values["method"] = method
    tasks = ",".join(places.study.tasks)
    execute(prepare(str(places.model(row.model)), tasks, places.data, places.results, values), scored=True)
    logger.info("%s: done", row.label)


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.evaluate", __doc__)
    add_places(parser)
    parser.add_argument("--table", required=True, help="a budget, or the key of another table; references for those")
    parser.add_argument("--rows", default="", help="only the rows whose label contains this")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    places = Places.read(given)
    tables = [str(table) or REFERENCES for table in places.study.tables]
    if given.table not in tables:
        parser.error(f"--table {given.table} is not one of {', '.join(tables)}")
    rows = [row for row in places.rows() if (str(row.table) or REFERENCES) == given.table and not row.why]
    rows = [row for row in rows if given.rows in row.label]
    for number, row in enumerate(rows, start=1):
        logger.info("row %d of %d: %s", number, len(rows), row.label)
        evaluate(row, places)


if __name__ == "__main__":
    sys.exit(main())
