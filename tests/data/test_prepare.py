"""The check of a record file: what it finds, prints, writes and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_prumerge.data import prepare


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


GOOD = [
    {"id": "good", "image": "a.jpg", "conversations": turns("<image>\nhi?", "red cat")},
    {"id": 5, "conversations": turns("hi?", "yes")},
]
BAD = [
    ({"id": "absent", "image": "no.jpg", "conversations": turns("<image>", "cat")}, "missing"),
    ({"id": "cut", "image": "cut.jpg", "conversations": turns("<image>", "cat")}, "broken"),
    ({"id": "out", "image": "../a.jpg", "conversations": turns("<image>", "cat")}, "path escapes"),
    ({"id": "mute", "conversations": turns("hi?", "")}, "empty turn"),
    ({"id": "lost", "image": "a.jpg", "conversations": turns("hi?", "cat")}, "image markers"),
    ({"conversations": "hi"}, "format"),
]


@pytest.fixture
def check(tmp_path: Path, save_image: Callable[..., Path], tokenizer_folder: Path) -> Callable[..., int]:
    whole = save_image("a.jpg", size=(200, 200))
    (whole.parent / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    save_image("named.jpg", format="PNG")

    def run(records: list[Any], *options: str) -> int:
        data = tmp_path / "records.json"
        data.write_text(json.dumps(records))
        folders = ["--images", str(whole.parent), "--tokenizer", str(tokenizer_folder)]
        return prepare.main(["check", str(data), *folders, "--image-tokens", "4", *options])

    return run


def test_sound_records_pass(check: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(GOOD) == 0
    assert capsys.readouterr().out.startswith("2 records, 0 bad; the sound ones: 1 images, 1 without image, ")


@pytest.mark.parametrize(("record", "kind"), BAD, ids=[kind for _, kind in BAD])
def test_a_bad_record_fails(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str], record: dict[str, Any], kind: str
) -> None:
    assert check([*GOOD, record]) == 1
    out = capsys.readouterr().out
    assert "3 records, 1 bad" in out and f"fault: 1 x {kind}" in out
    assert f"{record.get('id', '#2')} (record 2): {kind}: " in out


def test_report_and_clean_copy(check: Callable[..., int], tmp_path: Path) -> None:
    records = [GOOD[0], *(record for record, _ in BAD), GOOD[1]]
    report, clean = tmp_path / "report.json", tmp_path / "clean.json"
    assert check(records, "--report", str(report), "--clean", str(clean)) == 1
    summary = json.loads(report.read_text())
    assert (summary["records"], summary["bad"], summary["image_tokens"]) == (8, 6, 4)
    assert {kind: entry["count"] for kind, entry in summary["faults"].items()} == {kind: 1 for _, kind in BAD}
    assert summary["faults"]["missing"]["first"][0]["sample_id"] == "absent"
    assert json.loads(clean.read_text()) == GOOD
    assert check(GOOD[:0]) == 1  # an empty file is nothing to train on


def test_notes_do_not_fail(check: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    misnamed = {"id": "m", "image": "named.jpg", "conversations": turns("<image>", "cat dog red two")}
    assert check([misnamed], "--max-length", "43") == 0
    out = capsys.readouterr().out
    assert "note: 1 x misnamed" in out and "'named.jpg' is PNG" in out and "note: 1 x cut to length" in out


def test_many_offenders_are_counted_and_a_few_shown(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([{**BAD[3][0], "id": f"m{i}"} for i in range(9)]) == 1
    out = capsys.readouterr().out
    assert "fault: 9 x empty turn" in out and "m4" in out and "m5" not in out


def test_a_missing_file_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.main(["check", str(tmp_path / "no.json"), "--images", str(tmp_path), "--tokenizer", str(tmp_path)])
    assert caught.value.code == 2 and "no.json does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_find_the_same(check: Callable[..., int], tmp_path: Path) -> None:
    records = [*GOOD * 20, *(record for record, _ in BAD)] * 2
    reports = []
    for workers in ("1", "2"):
        assert check(records, "--workers", workers, "--report", str(tmp_path / "report.json")) == 1
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    assert reports[0] == reports[1]


def test_help_and_conversation_import_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets")
    code = (
        "import sys, llava_prumerge.data.conversation, llava_prumerge.data.prepare as p\n"
        "try: p.main(['check', '--help'])\n"
        f"except SystemExit: assert not [m for m in {heavy} if m in sys.modules]"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--max-length" in result.stdout
