"""Results side by side: every row found, its score on every benchmark, and paired differences from one of them.

    python -m llava_prumerge.evaluation.compare RESULTS... [--baseline LABEL] [--format text|markdown|csv] [--out FILE]
        [--plot FILE.png]

Unlike the paper's tables, which have fixed rows, this shows every result below the folders. Tokens are visual tokens
behind the vision reducer; equivalent tokens are averaged over the decoder's layers as well. A difference is paired: the
mean over questions of (right here - right in the baseline), in points, where both were asked the same questions. --plot
draws each benchmark's scores against tokens, a line per method with its budgets.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.efficiency.options import columns
from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import Result, mean_of_means, read_results
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_text

logger = logging.getLogger("eval")

ROW_FIELDS = ("label", "model", "train", "images")
DIFFERENCES = "Differences from {baseline} on the same questions: points of right answers, with a 95% interval."


@dataclass(frozen=True)
class Entry:
    """One row: a model with a method.

    Attributes:
        name: what it is called here, different from every other row's name.
        method: the name of its method, "none" for none.
        facts: model, training and images, as the result files say.
        tokens: visual tokens of an image behind the reducer; `equivalent` averaged over the decoder's layers.
        results: by task.
    """

    name: str
    method: str
    facts: Mapping[str, Any]
    tokens: float | None
    equivalent: float | None
    results: Mapping[str, Result]


@dataclass(frozen=True)
class Comparison:
    """All rows, the benchmarks they have in columns, and the row the others are compared with."""

    entries: Sequence[Entry]
    tasks: Sequence[str]
    baseline: Entry | None


def read_entries(folders: Sequence[Path]) -> list[Entry]:
    """All rows found, in the order of their folders; rows that look alike are told apart by their folder's name.

    Raises:
        EvaluationError: a folder does not exist, or holds no result.
    """
    found: dict[tuple[Any, ...], dict[str, Result]] = {}
    for path, result in read_results(folders, benchmark.names()):
        key = (path.parent, *(result["row"].get(name) for name in ROW_FIELDS))
        found.setdefault(key, {})[result["task"]] = result
    if not found:
        raise EvaluationError(f"no results in {', '.join(map(str, folders))}; `llava-prumerge evaluate` writes them")
    shown = [
        [str(fields[0])] + [str(value) for name, value in zip(ROW_FIELDS[1:], fields[1:]) if differs(found, name)]
        for _, *fields in found
    ]
    names = [" ".join([parts[0], *([f"({', '.join(parts[1:])})"] if parts[1:] else [])]) for parts in shown]
    twice = {name for name in names if names.count(name) > 1}
    entries = []
    for name, (key, results) in zip(names, found.items()):
        kept = [result["kept"] for result in results.values() if result.get("kept")]
        entries.append(
            Entry(
                f"{name} [{key[0]}]" if name in twice else name,
                str(next(iter(results.values()))["row"].get("method")),
                dict(zip(ROW_FIELDS[1:], key[2:])),
                mean([one["mean"] for one in kept]),
                mean([one["equivalent"] for one in kept if "equivalent" in one]),
                results,
            )
        )
    return entries


def differs(found: Mapping[tuple[Any, ...], Any], name: str) -> bool:
    """Whether the rows differ in a field."""
    return len({key[1 + ROW_FIELDS.index(name)] for key in found}) > 1


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None


def choose_baseline(entries: Sequence[Entry], wanted: str | None) -> Entry | None:
    """The row that the others are compared with: the named one, else the one without a method that has most results.

    Raises:
        EvaluationError: no row, or more than one, has that name or label.
    """
    if wanted is None:
        whole = [entry for entry in entries if entry.method == "none" and entry.facts.get("images") != "off"]
        return max(whole, key=lambda entry: len(entry.results), default=None)
    named = [entry for entry in entries if wanted in (entry.name, entry.name.split(" (")[0])]
    if len(named) != 1:
        listed = "; ".join(entry.name for entry in entries)
        raise EvaluationError(f"--baseline {wanted!r} names {len(named)} rows; there are: {listed}")
    return named[0]


def compare(folders: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Read everything and choose what is compared with what.

    Raises:
        EvaluationError: nothing to compare, or no such baseline.
    """
    entries = read_entries(folders)
    tasks = [task for task in benchmark.names() if any(task in entry.results for entry in entries)]
    return Comparison(entries, tasks, choose_baseline(entries, baseline))


def paired(own: Result | None, other: Result | None) -> tuple[float, float] | None:
    """The mean difference of two results' marks, and half of its 95% interval, in points; None for other questions.

    Two results are of the same questions if their digests of the questions agree. A run without images has a digest of
    its own, so that there the number of questions decides.
    """
    if own is None or other is None or not own.get("marks") or not other.get("marks"):
        return None
    digests = [result.get("generation", {}) for result in (own, other)]
    unpictured = any(one.get("images") == "off" for one in digests)
    if len(own["marks"]) != len(other["marks"]) or own.get("part") != other.get("part"):
        return None
    if not unpictured and digests[0].get("questions") != digests[1].get("questions"):
        return None
    difference, half = mean_of_means([[a - b for a, b in zip(own["marks"], other["marks"], strict=True)]])
    return 100 * difference, 100 * half


def show_score(result: Result | None) -> str:
    """A score with its interval, the number of questions, and its part of the benchmark where it is not the whole."""
    if result is None or result.get("value") is None:
        return ""
    low, high = result["interval_95"]
    part = f" ({result['part']})" if result.get("part") else ""
    return f"{result['value']:.1f} [{low:.1f}, {high:.1f}] n={result['n']}{part}"


def show_difference(found: tuple[float, float] | None) -> str:
    """A paired difference with half of its interval."""
    return "" if found is None else f"{found[0]:+.1f} ± {found[1]:.1f}"


def show_tokens(value: float | None) -> str:
    """A number of tokens."""
    return "" if value is None else f"{value:.1f}"


def score_rows(shown: Comparison) -> list[list[str]]:
    """The table of scores, headings first."""
    heads = ["row", "tokens", "equivalent", *(benchmark.find(task).title for task in shown.tasks)]
    body = [
        [
            entry.name,
            show_tokens(entry.tokens),
            show_tokens(entry.equivalent),
            *(show_score(entry.results.get(task)) for task in shown.tasks),
        ]
        for entry in shown.entries
    ]
    return [heads, *body]


def difference_rows(shown: Comparison) -> list[list[str]]:
    """The table of paired differences, headings first; empty where nothing can be paired."""
    if shown.baseline is None:
        return []
    body = []
    for entry in shown.entries:
        if entry is not shown.baseline:
            found = [paired(entry.results.get(task), shown.baseline.results.get(task)) for task in shown.tasks]
            body.append([entry.name, *map(show_difference, found)])
    if not any(any(row[1:]) for row in body):
        return []
    return [["row", *(benchmark.find(task).title for task in shown.tasks)], *body]


def to_text(shown: Comparison) -> str:
    """Both tables with aligned columns."""
    parts = [columns(score_rows(shown))]
    if differences := difference_rows(shown):
        parts += [DIFFERENCES.format(baseline=shown.baseline.name), columns(differences)]
    return "\n\n".join(parts) + "\n"


def to_markdown(shown: Comparison) -> str:
    """Both tables in Markdown."""

    def table(rows: list[list[str]]) -> str:
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    parts = [table(score_rows(shown))]
    if differences := difference_rows(shown):
        parts += [DIFFERENCES.format(baseline=shown.baseline.name), table(differences)]
    return "\n\n".join(parts) + "\n"


CSV_HEADS = ("row", "method", "model", "train", "images", "tokens", "equivalent", "task", "metric", "value", "low")
CSV_HEADS += ("high", "n", "part", "baseline", "difference", "difference_half")


def to_csv(shown: Comparison) -> str:
    """One line per row and benchmark, with all numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADS)
    for entry in shown.entries:
        for task in shown.tasks:
            result = entry.results.get(task)
            if result is None or result.get("value") is None:
                continue
            pair = None
            if shown.baseline is not None and entry is not shown.baseline:
                pair = paired(result, shown.baseline.results.get(task))
            facts = [entry.facts.get(name) for name in ROW_FIELDS[1:]]
            score = [result.get("metric"), result["value"], *result["interval_95"], result["n"], result.get("part")]
            against = [shown.baseline.name, *pair] if pair and shown.baseline else [None, None, None]
            writer.writerow([entry.name, entry.method, *facts, entry.tokens, entry.equivalent, task, *score, *against])
    return text.getvalue()


FORMATS: dict[str, Callable[[Comparison], str]] = {"text": to_text, "markdown": to_markdown, "csv": to_csv}


@command()
def main(words: list[str]) -> None:
    """Print or write the comparison."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = Parser("llava_prumerge.evaluation.compare", __doc__)
    parser.add_argument("results", type=Path, nargs="+", help="folders that hold result files, searched through")
    parser.add_argument("--baseline", help="row that the others are compared with (default: the one without a method)")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--out", type=Path, help="a file to write instead of printing")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the scores against tokens")
    arguments = parser.parse_args(words)
    if arguments.plot is not None and arguments.plot.suffix.lower() != ".png":
        parser.error(f"--plot {arguments.plot} must end in .png")
    shown = compare(arguments.results, arguments.baseline)
    text = FORMATS[arguments.format](shown)
    if arguments.plot is not None:
        from llava_prumerge.evaluation.compare_plot import draw  # with torch, to tell pruners from reducers

        draw(shown, arguments.plot)
    if arguments.out is not None:
        write_text(arguments.out, text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(main())
