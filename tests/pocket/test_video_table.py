"""The page of the video comparison: means over seeds, paired differences, and the chain that makes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_prumerge.ground.errors import InputError
from playground.pocket.video import reproduce, table


def write(folder: Path, label: str, marks: list[float], kept: float) -> None:
    for task in table.TASKS:
        place = folder / label.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        values = {"task": task, "row": {"label": label}, "marks": marks, "kept": {"mean": kept}}
        (place / f"{task}.json").write_text(json.dumps(values))


def test_rows_are_means_over_seeds_and_paired(tmp_path: Path) -> None:
    write(tmp_path, "all tokens", [1, 1, 0, 1], 580)
    write(tmp_path, "random 18 seed 0", [1, 0, 0, 0], 76)
    write(tmp_path, "random 18 seed 1", [1, 0, 0, 1], 76)
    lines = table.page(tmp_path).splitlines()
    full = next(line for line in lines if line.startswith("| all tokens"))
    assert full == "| all tokens | 580 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 |  |"
    drawn = next(line for line in lines if line.startswith("| random 18"))
    # per question 1, 0, 0, 0.5 against 1, 1, 0, 1: a mean difference of -0.375
    assert drawn.startswith("| random 18 | 76 | 37.5 | 37.5 | 37.5 | 37.5 | 37.5 | -37.5 ± ")
    assert lines.index(full) < lines.index(drawn)


def test_without_the_full_model_there_is_no_page(tmp_path: Path) -> None:
    write(tmp_path, "random 18 seed 0", [1], 76)
    with pytest.raises(InputError, match="results of 'all tokens' are missing"):
        table.page(tmp_path)


def test_every_step_comes_after_what_it_needs() -> None:
    steps = reproduce.steps()
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for step in steps:
        assert all(name in names[: names.index(step.name)] for name in step.after), step.name
    labels = [row.label for row in reproduce.rows()]
    assert len(set(labels)) == len(labels) and {"all tokens", "PruMerge 18", "PruMerge+ 36", "random 36 seed 2"} <= set(
        labels
    )
