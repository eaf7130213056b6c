"""One method against every other of a comparison at equal equivalent tokens: paired differences with 95% intervals.

    python -m playground.pocket.comparison.against METHOD --study NAME --runs DIR --root DIR [--tasks LIST] [--first N]

The report's differences are from the full model; these are from one method, on the same questions and by the same score. Rows that were
not evaluated are left out, and so are those whose weights learnt their method, METHOD's own but for one that has no other. Before each
table stands the method's own score.
"""

# ruff: noqa: T201  (the tables are what is asked for)

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.ground.command import Parser, at_least, command
from playground.pocket.comparison.places import Places, add_places
from playground.pocket.comparison.report import Evaluated, read_evaluated


def differences(evaluated: Evaluated, method: str, table: int) -> list[tuple[str, float, float, float]]:
    """Other methods at one budget, the best first: name, score, the method's score less theirs, half of its 95% interval.

    Raises:
        EvaluationError: the method has no result there.
    """
    lines = {(name, trained): rows for (name, at, trained), rows in evaluated.lines().items() if at == table}
    done = {key: rows for key, rows in lines.items() if all(evaluated.is_whole(row) for row in rows)}
    whole = {name: rows for (name, trained), rows in done.items() if not trained}
    mine = whole.pop(method, None) or done.get((method, True))
    if mine is None:
        there = sorted({name for name, _ in done})
        raise EvaluationError(f"{method!r} has no result at {table} tokens; there are: {', '.join(there)}")
    own = evaluated.marks(mine)
    others = {name: evaluated.marks(rows) for name, rows in whole.items()}
    scores = {name: evaluated.scale.score(marks)[0] for name, marks in others.items()}
    best_first = sorted(others, key=lambda name: -scores[name])
    return [(name, scores[name], *evaluated.scale.difference(own, others[name])) for name in best_first]


def page(evaluated: Evaluated, method: str, first: int) -> Iterator[str]:
    """A table for each budget, in Markdown."""
    for table in evaluated.places.study.budgets:
        try:
            found = differences(evaluated, method, table)
        except EvaluationError as error:
            yield f"\n{error}"
            continue
        yield (
            f"\n{table} equivalent tokens: {method} {found[0][1] + found[0][2]:.1f}\n"
            if found
            else f"\n{table}: alone\n"
        )
        yield f"| method | score | {method} is better by |\n| --- | ---: | ---: |"
        for name, score, difference, half in found[:first]:
            told = f"{difference:+.1f} ± {half:.1f}"
            yield f"| {name} | {score:.1f} | {f'**{told}**' if abs(difference) > half else told} |"


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.against", __doc__)
    parser.add_argument("method", help="as the comparison's tables call it")
    add_places(parser)
    parser.add_argument("--first", type=at_least(1), default=8, help="how many of the best others")
    parser.add_argument("--tasks", help="benchmarks that count, with commas (default: the study's)")
    given = parser.parse_args(words)
    places = Places.read(given)
    if given.tasks:
        places = replace(places, study=replace(places.study, tasks=tuple(given.tasks.split(","))))
    print("\n".join(page(read_evaluated(places, partial=True), given.method, given.first)))


if __name__ == "__main__":
    sys.exit(main())
