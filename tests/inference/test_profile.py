"""Times of questions by part, on checkpoints of several families."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_families import write_family

from llava_prumerge.efficiency.__main__ import report
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.profile import PARTS, main


@pytest.mark.parametrize("name", ["llava_next", "gemma3", "qwen2_5_vl"])
def test_each_method_has_a_line_with_its_tokens_and_times(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "model", name)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = ["--model", str(tmp_path / "model"), str(tmp_path / "photo.png"), "--question", "w5 w6", "--device", "cpu"]
    words += ["--methods", "none", "uniform:budget=3", "fastv", "--new-tokens", "4", "--repeats", "2"]
    assert not main([*words, "--out", str(tmp_path / "found.json")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["ms", "none", "uniform", "fastv"]
    found = json.loads((tmp_path / "found.json").read_text())["methods"]
    none, uniform, fastv = found.values()
    assert none["kept"] == none["full"] == uniform["full"] > uniform["kept"]
    assert fastv["kept"] == none["full"] > fastv["equivalent"] > 0
    for told in found.values():
        seconds = told["seconds"]
        assert seconds["total"] > 0 and all(seconds[part] >= 0 for part in PARTS)
    assert main([*words, "--repeats", "0"]) == 2


def test_commands_that_make_up_a_llava_refuse_other_families(tmp_path: Path) -> None:
    write_family(tmp_path / "model", "internvl")
    with pytest.raises(InputError, match="inference.profile measures a checkpoint of any family"):
        report(["latency", "--model", str(tmp_path / "model"), "--device", "cpu"])
