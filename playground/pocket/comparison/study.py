"""What one comparison compares: models, budgets, rows and benchmarks; each study is a module with a `STUDY`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playground.pocket.comparison.rows import Row, Table, reference_rows

if TYPE_CHECKING:
    from llava_prumerge.efficiency.shapes import ModelShape
    from playground.pocket.comparison.report import Evaluated

STUDIES = {"methods": "playground.pocket.comparison.pocket_study", "photos": "playground.photos.study"}
"""Name, which is that of its report, and where it is."""
Rows = Callable[[Path], Iterator[Row]]
"""Rows, given the folder of what searches wrote."""
Content = dict[str, Any]
"""All that a report says, JSON-ready."""


@dataclass(frozen=True)
class Section:
    """A table of rows that share no budget with the others.

    Attributes:
        key: of its rows.
        title, note: above it.
        rows: of it.
    """

    key: str
    title: str
    note: str
    rows: Rows


@dataclass(frozen=True)
class Study:
    """A comparison.

    Attributes:
        name: of its report.
        model_label: how tables call the model.
        shape: of the model.
        budgets: equivalent tokens of the tables, in order.
        budget_rows: training-free rows of a table.
        trained: rows of models that learnt a method.
        sections: further tables.
        folders: model of a row -> its run's folder; `inside` is where the model lies in it.
        tasks: benchmarks that are asked.
        settings: of the evaluation, beside those of a row.
        by_image: the score is over all questions, and its interval over images; else over benchmarks and questions.
        seeds: of questions and training, and of searches where there are some.
        introduction: what stands above the tables.
        conclusion: what stands below them.
        more: what the report says beside the rows, from these and from all that was evaluated.
    """

    name: str
    model_label: str
    shape: ModelShape
    budgets: Sequence[int]
    budget_rows: Callable[[int, Path], Iterator[Row]]
    trained: Callable[[], Iterator[Row]]
    sections: Sequence[Section]
    folders: Mapping[str, str]
    tasks: Sequence[str]
    seeds: Mapping[str, int]
    introduction: Callable[[Content], str]
    conclusion: Callable[[Content], str]
    more: Callable[[Content, Evaluated], Content]
    settings: Mapping[str, str]
    inside: str = "merged"
    by_image: bool = False

    @property
    def patches(self) -> int:
        """P, visual tokens of an image without a method."""
        return self.shape.vision.patches

    def rows(self, found: Path) -> list[Row]:
        """Every row: the full model, the same questions without images, what was trained, then table by table.

        Args:
            found: folder of what the searches wrote.
        """
        rows = [*reference_rows(), *self.trained()]
        rows += [row for budget in self.budgets for row in self.budget_rows(budget, found)]
        return [*rows, *(row for section in self.sections for row in section.rows(found))]

    @property
    def tables(self) -> list[Table]:
        """Of the report, in order; the references come first."""
        return ["", *self.budgets, *(section.key for section in self.sections)]


def study(name: str) -> Study:
    """One of `STUDIES`."""
    found = import_module(STUDIES[name]).STUDY
    assert isinstance(found, Study)
    return found
