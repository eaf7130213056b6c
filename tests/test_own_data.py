"""docs/own_data.md, followed as it stands: twenty records, check, LoRA training, and a question to the result."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
BACKBONES = ROOT / "playground" / "pocket" / "backbones"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, flags=re.DOTALL)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_prumerge import assemble

    model, processor = assemble(BACKBONES / "lm", BACKBONES / "clip")
    model.save_pretrained(tmp_path / "MODEL")
    processor.save_pretrained(tmp_path / "MODEL")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    make, ask = blocks("python")
    exec(make, {})
    record = json.loads(blocks("json")[0])
    made = json.loads(Path("my_data/records.json").read_text())
    assert len(made) == 20 and set(made[0]) == set(record) and made[0]["conversations"][0].keys() == {"from", "value"}
    check, train = (shlex.split(block.strip()) for block in blocks("bash"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLAVA_PRUMERGE_CACHE": str(tmp_path / "cache")}
    small = ["max_length=256", "lora_rank=4", "max_steps=2", "workers=0", "precision=fp32", "attention=sdpa"]
    for words in (check, [*train, *small]):
        done = subprocess.run(
            [sys.executable, *words[1:]], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    assert (tmp_path / "runs" / "mine" / "finished.json").is_file()
    exec(ask, {"print": lambda text: None})
