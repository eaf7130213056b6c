"""Where a comparison keeps what it needs and what it makes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_prumerge.ground.command import Parser
from playground.pocket.comparison.rows import Row
from playground.pocket.comparison.study import STUDIES, Study, study


@dataclass(frozen=True)
class Places:
    """The folders of one comparison.

    Attributes:
        study: what is compared.
        runs: of the trainings.
        root: of the comparison.
        asked: folder whose `eval` holds the benchmarks, where that is not the comparison's own.
    """

    study: Study
    runs: Path
    root: Path
    asked: Path | None = None

    def model(self, key: str) -> Path:
        """The model of a row."""
        return self.runs / self.study.folders[key] / self.study.inside

    @property
    def questions(self) -> Path:
        """The benchmarks and the calibration questions."""
        return self.root / "questions" if self.asked is None else self.asked

    @property
    def data(self) -> Path:
        """The benchmarks."""
        return self.questions / "eval"

    @property
    def calibration(self) -> Path:
        """The searches' questions."""
        return self.questions / "calibration.jsonl"

    @property
    def found(self) -> Path:
        """What the searches wrote."""
        return self.root / "found"

    @property
    def results(self) -> Path:
        """Result files of the evaluation, one folder per row."""
        return self.root / "results"

    @property
    def prefills(self) -> Path:
        """Prefill times and token counts, one file per row."""
        return self.root / "prefill"

    def rows(self) -> list[Row]:
        """All rows of the study."""
        return self.study.rows(self.found)

    def options(self) -> Iterator[str]:
        """As the steps' commands take them."""
        yield from ("--study", self.study.name, "--runs", str(self.runs), "--root", str(self.root))
        if self.asked is not None:
            yield from ("--asked", str(self.asked))

    @classmethod
    def read(cls, given: Namespace) -> Places:
        """From the command line, see `add_places`."""
        return cls(study(given.study), given.runs, given.root, given.asked)


def add_places(parser: Parser) -> None:
    """`--study NAME --runs DIR --root DIR [--asked DIR]`, which all parts of a comparison take."""
    parser.add_argument("--study", choices=STUDIES, default="methods", help="what is compared (default: %(default)s)")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--root", type=Path, required=True, help="folder of the comparison")
    parser.add_argument(
        "--asked", type=Path, help="folder whose eval holds the benchmarks (default: questions in --root)"
    )
