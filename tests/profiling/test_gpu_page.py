"""Kernels are counted, and the page of a GPU says what the committed numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_llava import tiny_config

from llava_prumerge.efficiency.__main__ import report
from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.profiling import gpu_page, kernels
from llava_prumerge.profiling.timing import Action

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
COMMITTED = ROOT / "docs" / "results" / "efficiency_gpu"


def test_operators_are_counted_once_and_by_step() -> None:
    left = torch.ones(3, 3)
    found = kernels.kernels_of(Action(lambda _: [left @ left for _ in range(4)], times=2), CPU)
    counts = {name: count for name, count, _ in found["top"]}
    assert counts == {"aten::matmul": 4} and (found["kernels"], found["copies"]) == (2, 0)
    assert kernels.host_waits(Action(lambda _: left.sum().item()), CPU) == []


def test_the_command_measures_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "config.json", tmp_path / "k.json"
    config.write_text(json.dumps(tiny_config().to_dict()))
    words = ["--model", str(tmp_path), "--methods", "{name: prumerge, budget: 5}", "--batch", "2", "--prompt", "4"]
    words += ["--answer", "2", "--device", "cpu", "--dtype", "float32", "--repeats", "2", "--out", str(out)]
    assert kernels.main(words) == 0
    rows = {(row["part"], row["system"]): row for row in json.loads(out.read_text())["rows"]}
    assert {part for part, _ in rows} == {"tower", "reducer", "reducer alone", "prefill", "decode"}
    assert all(row["kernels"] > 0 and row["waits"] == [] for row in rows.values())
    step, stock = rows["decode", "prumerge 5"], rows["decode", "stock, prumerge 5"]
    assert step["times_stock"]["n"] == 2 and abs(step["kernels"] - stock["kernels"]) < 40
    assert rows["reducer", "prumerge 5"]["kernels"] >= rows["reducer alone", "prumerge 5"]["kernels"]
    assert "of the tower" in capsys.readouterr().out


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "x.json"
    for text, told in (("{", "not JSON"), ('{"what": "reducer"}', "wrote this file"), ("[1]", "wrote this file")):
        wrong.write_text(text)
        with pytest.raises(EfficiencyError, match=told):
            gpu_page.read([wrong])
    with pytest.raises(EfficiencyError, match="cannot be read"):
        gpu_page.read([tmp_path / "none.json"])


def test_the_committed_page_is_that_of_the_committed_numbers(tmp_path: Path) -> None:
    results = json.loads(COMMITTED.with_suffix(".json").read_text())["results"]
    files = []
    for number, result in enumerate(results):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(result))
    printed = report(["collect-gpu", *map(str, files), "--out", str(tmp_path / "page")])
    assert (tmp_path / "page.md").read_text() == COMMITTED.with_suffix(".md").read_text()
    assert "missed" in printed and (tmp_path / "page.png").stat().st_size > 10_000
    cards = {run["machine"]["device"] for result in results for run in result.get("runs", [])}
    assert all(card in (tmp_path / "page.md").read_text() for card in cards)
