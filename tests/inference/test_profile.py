"""Times of questions by part, on checkpoints of several families."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_families import write_family

from llava_prumerge.efficiency.__main__ import report
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.profile import PARTS, main
from llava_prumerge.profiling.machine import Peaks


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose peaks need not be measured."""
    monkeypatch.setattr("llava_prumerge.profiling.machine.find_peaks", lambda *_: Peaks(1e10, 1e11, "a data sheet"))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_each_method_has_a_column_with_its_tokens_times_and_floors(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "model", name)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = [str(tmp_path / "model"), str(tmp_path / "photo.png"), "--question", "w5 w6", "--device", "cpu"]
    words += ["--method", "uniform:budget=3", "--method", "fastv:layer=1", "--new-tokens", "4", "--repeats", "3"]
    assert not main([*words, "--out", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    lines = printed[printed.index("ms: median") :].splitlines()  # a library may have said something before
    assert re.split(r"  +", lines[0]) == [
        "ms: median (quartiles)", "none", "least", "uniform budget=3 sample=stride", "least", "fastv keep_ratio=0.5 layer=1", "least"
    ]  # fmt: skip
    told = json.loads((tmp_path / "found.json").read_text())
    none, uniform, fastv = told["methods"].values()
    full = none["measured"]["full"]
    assert none["kept"] == full == uniform["measured"]["full"] > uniform["kept"]
    assert fastv["kept"] == full > fastv["measured"]["equivalent"] > uniform["measured"]["equivalent"] / 4
    for one in told["methods"].values():
        seconds, floors = one["measured"]["seconds"], one["measured"]["floors"]
        assert set(floors) == {"tower", "projector", "prefill", "decode"} and min(floors.values()) > 0
        assert seconds["total"] > 0 and all(seconds[part] >= 0 for part in PARTS)
        for part in (*PARTS, "total"):
            low, middle, high = one["spread"][part]
            assert low <= middle == seconds[part] <= high
        assert len(one["rounds"]) == 3
    assert uniform["measured"]["floors"]["prefill"] < none["measured"]["floors"]["prefill"]
    assert fastv["measured"]["floors"]["prefill"] < none["measured"]["floors"]["prefill"]
    assert uniform["measured"]["floors"]["tower"] == none["measured"]["floors"]["tower"]
    assert list(told["sentences"].values()) == lines[-2:] and all("-bound: " in line for line in lines[-2:])


def test_without_a_method_it_is_the_checkpoints_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_family(tmp_path / "model", "llava")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    words = [
        str(tmp_path / "model"),
        str(tmp_path / "photo.png"),
        "--question",
        "w5",
        "--repeats",
        "1",
        "--new-tokens",
        "2",
    ]
    assert main([*words, "device=cpu"]) == 2
    assert "has no method of its own: name one with --method" in capsys.readouterr().err
    own = {"vision": {"name": "uniform", "budget": 3}}
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(config | {"model_type": "prumerge_llava", "reduction": own})
    )
    assert not main([*words, "device=cpu"])
    printed = capsys.readouterr().out
    assert "  uniform budget=3  least\n" in printed and "3 of 16, 3" in printed
    assert main([*words, "--repeats", "0"]) == 2


def test_commands_that_make_up_a_llava_refuse_other_families(tmp_path: Path) -> None:
    write_family(tmp_path / "model", "internvl")
    with pytest.raises(InputError, match="llava-prumerge profile measures a checkpoint of any family"):
        report(["latency", "--model", str(tmp_path / "model"), "--device", "cpu"])
