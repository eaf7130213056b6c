"""The reducer benchmark measures what it says, on a fake tower."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from llava_prumerge.profiling import reducer as benchmark


class Stand(nn.Module):
    """As cheap as a tower can be."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.mean()


def test_made_up_attention_has_about_forty_outliers() -> None:
    image = benchmark.synthetic_tokens(8)()
    counts = benchmark.build_reducer({"name": "cls_topk"})(image)[1].sum(dim=1)
    assert ((counts >= 33) & (counts <= 50)).all()
    assert image.features.shape == (8, 576, 1024) and image.features.dtype == torch.float32


def test_each_run_computes_attention_anew() -> None:
    make = benchmark.synthetic_tokens(1, side=4, width=8)
    assert make() is not make()
    assert not make()._blocks


def test_command_ends_with_one_json_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "clip_tower", Stand)
    monkeypatch.setattr(benchmark, "SIDE", 24)
    arguments = ["--methods", "prumerge", "{name: pool, rows: 5, columns: 8}", "--batch", "1", "2"]
    benchmark.benchmark([*arguments, "--repeats", "2"])
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    said = [re.sub(r"\d+ s ", "", line) for line in printed.err.splitlines()]
    rounds = [f"round {done} of 3, so far, about left" for done in (1, 2, 3)]
    assert said[1:] == [f"batch {images}: {what}" for images in (1, 2) for what in ("begins", *rounds)]
    assert [(row["method"], row["batch"]) for row in result["rows"]] == [
        ("prumerge", 1),
        ("pool", 1),
        ("prumerge", 2),
        ("pool", 2),
    ]
    assert result["rows"][1]["kept_mean"] == 40 and result["rows"][1]["settings"] == {"rows": 5, "columns": 8}
    assert result["worst_percent"] == max(row["share_percent"] for row in result["rows"])
    for row in result["rows"]:
        assert row["reduction_ms"]["q1"] <= row["reduction_ms"]["median"] <= row["reduction_ms"]["q3"]


def test_by_default_every_method_that_needs_no_setting() -> None:
    names = [block["name"] for block in benchmark.blocks_of(None)]
    assert {"none", "prumerge", "prumerge_plus", "random", "uniform", "grid", "pool", "cls_topk"} <= set(names)


@pytest.mark.slow
def test_share_of_a_clip_forward() -> None:
    result = benchmark.benchmark(["--batch", "1", "--repeats", "3"])
    assert result["worst_percent"] <= benchmark.TARGET_PERCENT
