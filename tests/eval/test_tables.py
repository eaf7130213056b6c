"""Tables hold what was measured, quote what was not, and lose nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import bootstrap, normal, wilson
from llava_prumerge.evaluation.tables import CERTAINTY, SPECIFICATION, TRAINING, escape_latex, main, make_tables


@pytest.fixture
def results(tmp_path: Path):
    """Writes a result file of a row."""

    def save(task: str, value: float | None, kept: float | None = 576.0, **row: str | None) -> Path:
        row = {"model": "tiny", "method": "none", "train": "lora", "images": "on"} | row
        row = {"label": row["method"], **row}
        path = tmp_path / "results" / "-".join(map(str, row.values())) / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = kept and {"mean": kept, "share": kept / 5.76}
        scored = (
            {"value": value, "interval_95": [value - 1, value + 1], "n": 500, "chance": 50.0}
            if value
            else {"value": None}
        )
        path.write_text(json.dumps({"task": task, "row": row, "kept": counts, **scored}))
        return tmp_path / "results"

    return save


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def find(path: Path, **wanted: str) -> list[dict[str, str]]:
    return [row for row in rows_of(path) if wanted.items() <= row.items()]


def test_measured_quoted_and_blank(results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results("sqa", 70.0)
    results("sqa", 66.0, 32.0, method="prumerge", label="PruMerge")
    results("pope", 77.0, 40.0, method="prumerge", label="PruMerge")
    results("sqa", 60.0, 32.0, method="prumerge", label="PruMerge", train="none")
    results("sqa", 55.0, None, images="off", label="text")
    results("sqa", 65.0, 64.0, method="newer", label="Newer budget=64")
    results("vqav2", None)
    assert main([str(folder), "--out", str(tmp_path / "tables")]) == 0
    table = tmp_path / "tables" / "table1.csv"
    (cell,) = find(table, row="+ PruMerge", source="measured", task="sqa")
    assert (cell["value"], cell["low"], cell["high"], cell["n"], cell["training"]) == (
        "66.0",
        "65.0",
        "67.0",
        "500",
        "LoRA",
    )
    assert cell["kept"] == "5.6 to 6.9"
    assert find(table, row="+ PruMerge", source="measured", task="mme")[0]["value"] == ""
    (cell,) = find(table, row="+ PruMerge", source="quoted", task="mme", model="LLaVA-1.5, Vicuna-7B")
    assert (cell["value"], cell["certainty"]) == ("1350.3", "table")
    assert find(table, row="Text only", task="sqa")[0]["value"] == "55.0"
    assert find(table, row="Chance", task="sqa")[0]["value"] == "50.0"
    assert find(table, row="Newer budget=64", task="sqa")[0]["value"] == "65.0"
    assert find(table, row="+ PruMerge+", source="not run", task="sqa")[0]["value"] == ""
    assert find(table, row="LLaVA-1.5", source="measured", task="vqav2")[0]["value"] == ""
    table = tmp_path / "tables" / "table6.csv"
    values = {row["row"]: row["value"] for row in find(table, source="measured", task="sqa")}
    assert values == {"PruMerge, training-free": "60.0", "PruMerge, LoRA": "66.0"}
    printed = capsys.readouterr().out
    assert "| + PruMerge | tiny | LoRA | 5.6 to 6.9 |  | 66.0 [65.0, 67.0] n = 500 |" in printed
    assert "1350.3†" in printed and "54.8‡" in printed
    assert printed == (tmp_path / "tables" / "tables.md").read_text()
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "tables.md",
        *(f"table{n}.{suffix}" for n in (1, 4, 5, 6) for suffix in ("md", "csv", "tex")),
    }


def test_several_results_of_one_row_are_called_by_their_labels(results, tmp_path: Path) -> None:
    for label in ("grid 5x8", "grid 6x6"):
        folder = results("textvqa", 46.0, 40.0, method="grid", train="none", label=label)
    make_tables([folder], tmp_path)
    rows = find(tmp_path / "table4.csv", source="measured", task="textvqa")
    assert {row["row"] for row in rows} == {"Spatial (grid) (grid 5x8)", "Spatial (grid) (grid 6x6)"}


def test_two_results_for_one_cell_are_refused(results, tmp_path: Path) -> None:
    folder = results("sqa", 70.0)
    copy = folder / "copy" / "sqa.json"
    copy.parent.mkdir()
    copy.write_text((next(folder.glob("*/sqa.json"))).read_text())
    with pytest.raises(EvaluationError, match="are the same row .*; tell them apart with label="):
        make_tables([folder], tmp_path)
    copy.unlink()
    make_tables([folder, folder], tmp_path)  # the same file twice is no conflict


def test_no_results_is_an_error(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2


def test_latex_is_balanced(results, tmp_path: Path) -> None:
    folder = results("sqa", 66.0, 32.0, method="new_one", label="50% & more_{x}")
    make_tables([folder], tmp_path)
    text = (tmp_path / "table1.tex").read_text()
    assert r"50\% \& more\_\{x\}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert all(line.endswith(r"\\") and line.replace(r"\&", "").count("&") == 9 for line in body)
    assert escape_latex("a\\b") == r"a\textbackslash{}b"


def test_the_specification_is_sound() -> None:
    for table in yaml.safe_load(SPECIFICATION.read_text()).values():
        assert set(table["tasks"]) <= set(benchmark.names()) and table["kept"] in ("share", "tokens")
        for row in table["rows"]:
            assert row.get("chance") or row["where"]
            for quoted in row.get("quoted", ()):
                assert set(quoted["values"]) <= set(table["tasks"]) and quoted["train"] in TRAINING
                certainty = quoted["certainty"]
                assert set(certainty.values() if isinstance(certainty, dict) else [certainty]) <= set(CERTAINTY)
                for task, value in quoted["values"].items():
                    assert 0 < value <= benchmark.find(task).maximum


def test_wilson_interval_is_the_textbook_one() -> None:
    assert wilson(8, 10) == pytest.approx((49.0, 94.3), abs=0.1)
    assert wilson(0, 10) == pytest.approx((0.0, 27.75), abs=0.01)
    assert wilson(10, 10) == pytest.approx((72.25, 100.0), abs=0.01)


def test_normal_and_bootstrap_intervals_agree() -> None:
    numpy = pytest.importorskip("numpy")
    values = numpy.random.default_rng(1).random(2000)
    exact = normal([list(values)], 1.0)
    drawn = bootstrap(2000, lambda weights: weights @ values / weights.sum(axis=1))
    assert drawn == pytest.approx(exact, abs=0.002)
    assert drawn == bootstrap(2000, lambda weights: weights @ values / weights.sum(axis=1))  # seeded
    assert normal([[0.0, 0.0], [1.0, 1.0]], 5.0) == (1.0, 1.0)
