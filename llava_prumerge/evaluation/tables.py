"""The paper's tables from result files, as Markdown, CSV and LaTeX.

    python -m eval.tables RESULTS_DIR [RESULTS_DIR ...] --out DIR

A cell is measured (with its 95% interval and the number of questions), quoted from the paper and marked so, or blank.
`paper_tables.yaml` says which results fill which rows and holds the quoted values.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import Result, read_results
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_text

logger = logging.getLogger("eval")

SPECIFICATION = Path(__file__).with_name("paper_tables.yaml")
ROW_FIELDS = ("model", "label", "method", "train", "images")
TRAINING = {
    "none": "training-free",
    "lora": "LoRA",
    "full": "full",
    "projector": "projector",
    "method": "method",
    None: "",
}
CERTAINTY = {"table": "†", "repository": "†", "secondary": "‡"}
NOTES = (
    "Measured cells: value [95% interval] n = number of questions (CircularEval: of question groups). Blank: not run.",
    "† quoted, not measured here. ‡ quoted from others' accounts of the paper, not measured here.",
)


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    certainty: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    model: str
    training: str
    kept: str
    source: str
    cells: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table ready to be written."""

    key: str
    title: str
    tasks: Sequence[str]
    kept: str
    rows: Sequence[Row]
    taken: frozenset[tuple[Any, ...]] = frozenset()

    @property
    def headings(self) -> list[str]:
        """The columns' names."""
        kept = "kept, %" if self.kept == "share" else "tokens"
        return ["Method", "Model", "Training", kept, *(benchmark.find(task).title for task in self.tasks)]


Groups = dict[tuple[Any, ...], dict[str, Result]]


def group_results(folders: Sequence[Path]) -> Groups:
    """Results by row and task; two results for one cell are an error, for one of them would be lost."""
    groups: Groups = {}
    places: dict[tuple[Any, ...], Path] = {}
    for path, result in read_results(folders, benchmark.names()):
        row = tuple(result["row"].get(name) for name in ROW_FIELDS)
        cell = (*row, result["task"])
        if cell in places and places[cell].resolve() != path.resolve():
            raise EvaluationError(
                f"{places[cell]} and {path} are the same row ({', '.join(map(str, row))}); tell them apart with label="
            )
        places[cell] = path
        groups.setdefault(row, {})[result["task"]] = result
    return groups


def takes(where: Mapping[str, Any], row: tuple[Any, ...]) -> bool:
    """Whether a row of the specification takes results of that row."""
    fields = dict(zip(ROW_FIELDS, row, strict=True))
    return all(
        fields[name] in (accepted if isinstance(accepted, list) else [accepted]) for name, accepted in where.items()
    )


def measured_row(name: str, row: tuple[Any, ...], results: Mapping[str, Result], table: Mapping[str, Any]) -> Row:
    """A line of measured cells."""
    fields = dict(zip(ROW_FIELDS, row, strict=True))
    chosen = [results[task] for task in table["tasks"] if task in results]
    counts = [
        result["kept"]["share" if table["kept"] == "share" else "mean"] for result in chosen if result.get("kept")
    ]
    cells = {
        result["task"]: Cell(result["value"], *result["interval_95"], result["n"])
        for result in chosen
        if result.get("value") is not None
    }
    return Row(name, str(fields["model"]), TRAINING.get(fields["train"], ""), span(counts), "measured", cells)


def span(values: Sequence[float]) -> str:
    """The range of a row's kept tokens over its tasks, or the one value they share."""
    if not values:
        return ""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def quoted_row(name: str, quoted: Mapping[str, Any]) -> Row:
    """A line of the paper's own values."""
    certainty = quoted["certainty"]
    cells = {
        task: Cell(value, certainty=certainty[task] if isinstance(certainty, dict) else certainty)
        for task, value in quoted["values"].items()
    }
    return Row(name, quoted["model"], TRAINING[quoted.get("train")], str(quoted.get("kept", "")), "quoted", cells)


def chance_row(name: str, groups: Groups, tasks: Sequence[str]) -> Row:
    """What the best blind guess gets on the questions that were asked; of several question sets, on the largest."""
    cells = {}
    for task in tasks:
        found = [results[task] for results in groups.values() if results.get(task, {}).get("chance") is not None]
        if found:
            largest = max(found, key=lambda result: result["n"])
            cells[task] = Cell(largest["chance"], n=largest["n"])
    return Row(name, "", "", "", "computed", cells)


def fill_table(key: str, table: Mapping[str, Any], groups: Groups) -> Table:
    """A table of the specification with the results that it takes."""
    rows: list[Row] = []
    taken: set[tuple[Any, ...]] = set()
    for row in table["rows"]:
        if row.get("chance"):
            rows.append(chance_row(row["name"], groups, table["tasks"]))
            continue
        where = row.get("where")
        mine = [group for group in groups if where and group not in taken and takes(where, group)]
        mine = [group for group in mine if any(task in groups[group] for task in table["tasks"])]
        taken.update(mine)
        for group in mine:
            label = group[ROW_FIELDS.index("label")]
            name = label if row.get("rest") else f"{row['name']} ({label})" if len(mine) > 1 else row["name"]
            rows.append(measured_row(name, group, groups[group], table))
        if not mine and where and not row.get("rest"):
            rows.append(Row(row["name"], "", "", "", "not run"))
        rows += [quoted_row(row["name"], quoted) for quoted in row.get("quoted", ())]
    return Table(key, table["title"], table["tasks"], table["kept"], rows, frozenset(taken))


def show_cell(cell: Cell | None, row: Row) -> str:
    """A cell as text."""
    if cell is None:
        return ""
    if row.source == "quoted":
        digits = 1 if cell.value == round(cell.value, 1) else 2
        return f"{cell.value:.{digits}f}{CERTAINTY[cell.certainty]}"
    if cell.low is None:
        return f"{cell.value:.1f}"
    return f"{cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}] n = {cell.n}"


def show_row(row: Row, table: Table) -> list[str]:
    """A line as texts, one per column."""
    return [row.name, row.model, row.training, row.kept, *(show_cell(row.cells.get(task), row) for task in table.tasks)]


def to_markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [table.headings, ["---"] * len(table.headings), *(show_row(row, table) for row in table.rows)]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"### {table.title}\n\n{body}\n\n" + "\n\n".join(NOTES) + "\n"


def to_csv(table: Table) -> str:
    """The table as one line per number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["table", "row", "model", "training", "kept", "source", "task", "value", "low", "high", "n", "certainty"]
    )
    for row in table.rows:
        for task in table.tasks:
            cell = row.cells.get(task)
            numbers = (
                ["", "", "", "", ""] if cell is None else [cell.value, cell.low, cell.high, cell.n, cell.certainty]
            )
            writer.writerow([table.key, row.name, row.model, row.training, row.kept, row.source, task, *numbers])
    return text.getvalue()


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"†": r"$^\dagger$", "‡": r"$^\ddagger$"} | {mark: f"\\{mark}" for mark in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def to_latex(table: Table) -> str:
    """The table as a LaTeX `table` with booktabs rules."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escape_latex, cells)) + r" \\"

    columns = "lll" + "r" * (len(table.headings) - 3)
    body = [line(show_row(row, table)) for row in table.rows]
    opening = [r"\begin{table}", r"\centering\small", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    caption = escape_latex(f"{table.title}. {' '.join(NOTES)}")
    closing = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}"]
    return "\n".join([*opening, line(table.headings), r"\midrule", *body, *closing]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}


def make_tables(folders: Sequence[Path], out: Path) -> list[Table]:
    """Write all tables in all formats, and `tables.md` with all of them."""
    groups = group_results(folders)
    if not groups:
        raise EvaluationError(f"no results in {', '.join(map(str, folders))}; `llava-prumerge evaluate` writes them")
    tables = [fill_table(key, table, groups) for key, table in yaml.safe_load(SPECIFICATION.read_text("utf-8")).items()]
    for table in tables:
        for suffix, render in FORMATS.items():
            write_text(out / f"{table.key}.{suffix}", render(table))
    write_text(out / "tables.md", "\n".join(map(to_markdown, tables)))
    report_unused(groups, tables)
    return tables


def report_unused(groups: Groups, tables: Sequence[Table]) -> None:
    """Say which results filled no row, since the tables have the paper's rows alone."""
    used = frozenset().union(*(table.taken for table in tables))
    unused = [row for row in groups if row not in used]
    if unused:
        listed = "; ".join(f"{row[1]} of {row[0]} ({', '.join(groups[row])})" for row in unused)
        logger.warning("%d results filled no row of the paper's tables: %s", len(unused), listed)
        logger.warning("`llava-prumerge compare RESULTS...` shows all results side by side")


@command()
def main(words: list[str]) -> None:
    """Write the tables and print them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = Parser("llava_prumerge.evaluation.tables", __doc__)
    parser.add_argument("results", type=Path, nargs="+", help="folders that hold result files, searched through")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    arguments = parser.parse_args(words)
    sys.stdout.write("\n".join(map(to_markdown, make_tables(arguments.results, arguments.out))))


if __name__ == "__main__":
    sys.exit(main())
