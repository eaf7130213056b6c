"""Logs of one line a step: a resumed run repeats none, and no torn line survives."""

from __future__ import annotations

from pathlib import Path

from llava_prumerge.train.step_log import add_lines, drop_later_lines, read_log


def test_a_resumed_run_takes_the_log_back_to_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_later_lines(path, 3)
    assert read_log(path) == [] and not path.exists()
    for step in range(1, 6):
        add_lines(path, step, [{"loss": 1 / step}])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"loss": 0.5}', b'"lo', 1) + b'\xff\n[]\n{"step": "2"}\n{"step": 1, "cut o')
    drop_later_lines(path, 3)
    assert [line["step"] for line in read_log(path)] == [1, 3]
    before = path.stat().st_ino
    drop_later_lines(path, 3)
    assert path.stat().st_ino == before  # what is right already is not written again
    add_lines(path, 4, [{"loss": 0.25}])
    assert [line["step"] for line in read_log(path)] == [1, 3, 4]
    path.write_bytes(path.read_bytes() + b'{"step": 5')
    assert [line["step"] for line in read_log(path)] == [1, 3, 4]
