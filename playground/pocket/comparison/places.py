"""Where the comparison keeps what it needs and what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = {
    "full": "pocket-lora-none",
    "prumerge_plus_72": "pocket-lora-prumerge_plus",
    "prumerge_plus_36": "pocket-lora-prumerge_plus-36",
    "atp_72": "pocket-lora-atp_llava-72",
    "atp_36": "pocket-lora-atp_llava-36",
}
"""Model of a row -> its run's folder; the first two are those of `make reproduce`."""
TASKS = ("vqav2", "textvqa", "pope")


@dataclass(frozen=True)
class Places:
    """The folders of one comparison.

    Attributes:
        runs: of the trainings.
        root: of the comparison.
    """

    runs: Path
    root: Path

    def model(self, key: str) -> Path:
        """The merged model of a row."""
        return self.runs / FOLDERS[key] / "merged"

    @property
    def questions(self) -> Path:
        """The benchmarks and the calibration questions."""
        return self.root / "questions"

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

    def options(self) -> Iterator[str]:
        """As the steps' commands take them."""
        yield from ("--runs", str(self.runs), "--root", str(self.root))
