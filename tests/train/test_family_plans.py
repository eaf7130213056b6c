"""The plan of a run on a model of another family, and what is said before there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from train.family_world import write_checkpoint, write_records

from llava_prumerge.train.preflight import advice
from llava_prumerge.train.run import main


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_a_plan_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    records, model = write_records(tmp_path), write_checkpoint(tmp_path / name, name)
    given = [f"data={records}", f"images={tmp_path / 'images'}", f"model={model}", f"output_dir={tmp_path / 'run'}"]
    assert main(["family/finetune_lora", "prumerge_plus", *given, "lora_rank=4", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "records 4" in text and "3 with images, 1 text only" in text and "GB per GPU" in text
    assert re.search(r"base +[\d.]+k in 56 tensors", text), "two for each of 7 matrices in 4 layers"
    assert re.search(r"projector(, no decay)? +[\d.]+k? in [1-9]", text)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_says_where_it_comes_from() -> None:
    assert "python playground/pocket/families.py other makes it" in advice(["playground/pocket/work/other"])
