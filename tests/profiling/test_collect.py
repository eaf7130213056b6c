"""The page of the CPU matrix judges by what was measured, and says what was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_prumerge.efficiency.__main__ import report as main
from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.ground.errors import FileError
from llava_prumerge.profiling import collect
from llava_prumerge.profiling.collect import Target


def spread(low: float, middle: float, high: float) -> dict[str, float]:
    return {"q1": low, "median": middle, "q3": high, "n": 3}


@pytest.mark.parametrize(
    ("ratio", "bound", "least", "verdict"),
    [
        (spread(4.1, 4.5, 5.0), 4, True, "met clearly"),
        (spread(3.9, 4.5, 5.0), 4, True, "met"),
        (spread(3.0, 3.9, 5.0), 4, True, "missed"),
        (spread(1.0, 1.5, 1.9), 2, False, "met clearly"),
        (spread(1.0, 1.5, 2.1), 2, False, "met"),
        (spread(1.0, 2.1, 2.2), 2, False, "missed"),
        (spread(0, 0, 0), 0, False, "met clearly"),
        (spread(1, 1, 1), 0, False, "missed"),
    ],
)
def test_a_target_is_met_by_the_median_and_clearly_by_the_quartile(ratio, bound, least, verdict: str) -> None:
    assert Target("x", ratio, bound, least).verdict() == verdict


MACHINE = {"device": "a processor", "threads": 2, "cores": 2, "torch": "2", "transformers": "5", "date": "today"}
MACHINE |= {"load": [0, 0, 0], "kind": "cpu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = {
        "throughput": {
            "machine": MACHINE,
            "questions": 9,
            "task": "vqav2",
            "batch_size": 4,
            "dtype": "float32",
            "projector": "random",
            "rows": [
                {"name": "stock, batch 1", "images_per_second": spread(9, 10, 11), "times_the_loop": spread(1, 1, 1)},
                {
                    "name": "prumerge_plus_72",
                    "images_per_second": spread(40, 45, 50),
                    "times_the_loop": spread(4.2, 4.5, 4.8),
                    "flips": 1,
                    "compared_with": "itself, batch 1",
                },
            ],
        },
        "training": {
            "machine": MACHINE,
            "recipes": ["r.yaml"],
            "projector": "random",
            "rows": [
                {
                    "stage": "lora",
                    "method": "prumerge_plus",
                    "samples_per_second": spread(1, 2, 3),
                    "gain": spread(1.1, 1.2, 1.3),
                    "peak_mb": None,
                    "grouped": {"padding_share": 0.12, "kept_mean": 30.0},
                    "shuffled": {"padding_share": 0.2, "kept_mean": 30.0},
                }
            ],
        },
        "pruner": {
            "machine": MACHINE,
            "rows": [
                {
                    "model": "pocket",
                    "batch": 64,
                    "method": "fastv",
                    "before_layer": 2,
                    "tokens": [208, 100],
                    "own_ms": spread(1, 2, 3),
                    "layer_ms": spread(38, 40, 42),
                    "share": spread(4.8, 5, 5.2),
                }
            ],
        },
        "other": {"anything": 1},
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "half.partial.json").write_text("{")
    return tmp_path


def test_the_page_holds_targets_tables_and_gaps(folder: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "out" / "efficiency_cpu"
    printed = main(["collect", str(folder), "--out", str(prefix)])
    page = prefix.with_suffix(".md").read_text()
    assert (
        "| evaluation, times the stock loop: prumerge_plus_72 | 4.5 (4.2 to 4.8) | at least 4 | met clearly |" in page
    )
    assert "| evaluation, answers that batching changes: prumerge_plus_72 | 1 (1 to 1) | at most 0 | missed |" in page
    assert "% padding with grouping: prumerge_plus | 12 (12 to 12) | at most 10 | missed |" in page
    assert page.count("Not measured.") == 2 and "`other`: in the JSON file" in page and "12.0% / 20.0%" in page
    assert "| pruner's own work, % of a decoder layer: fastv (pocket, batch 64) | 5 (4.8 to 5.2) " in page
    assert "| pocket | 64 | fastv | 2: 208 to 100 |" in page
    assert set(json.loads(prefix.with_suffix(".json").read_text())) == {"throughput", "training", "pruner", "other"}
    assert "missed" in printed and not prefix.with_suffix(".png").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EfficiencyError, match="holds no results"):
        main(["collect", str(tmp_path), "--out", str(tmp_path / "x")])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(FileError, match="not JSON"):
        collect.read(tmp_path)
