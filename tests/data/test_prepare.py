"""The check of a record file: what it finds, prints, writes and exits with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from llava_prumerge.data import audit, prepare
from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.data.recipe_data import count_image_tokens
from llava_prumerge.data.record_check import Checker
from llava_prumerge.ground.locks import hold

ROOT = Path(__file__).resolve().parents[2]


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


GOOD = [
    {"id": "good", "image": "a.jpg", "conversations": turns("<image>\nhi?", "red cat")},
    {"id": 5, "conversations": turns("hi?", "yes")},
]
BAD = [
    ({"id": "absent", "image": "no.jpg", "conversations": turns("<image>", "cat")}, "missing"),
    ({"id": "other", "image": "book.jpg", "conversations": turns("<image>", "cat")}, "wrong extension"),
    ({"id": "cut", "image": "cut.jpg", "conversations": turns("<image>", "cat")}, "broken"),
    ({"id": "out", "image": "../a.jpg", "conversations": turns("<image>", "cat")}, "path escapes"),
    ({"id": "mute", "conversations": turns("hi?", "")}, "empty turn"),
    ({"id": "lost", "image": "a.jpg", "conversations": turns("hi?", "cat")}, "image without marker"),
    ({"id": "film", "video": "a.mp4", "conversations": turns("hi?", "cat")}, "video"),
    ({"id": "song", "audio": "a.mp3", "conversations": turns("hi?", "cat")}, "media"),
    ({"conversations": "hi"}, "format"),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def check(cache: Path, tmp_path: Path, save_image: Callable[..., Path], tokenizer_folder: Path) -> Callable[..., int]:
    whole = save_image("a.jpg", size=(200, 200))
    (whole.parent / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    save_image("named.jpg", format="PNG")
    save_image("book.gif")

    def run(records: list[Any], *options: str) -> int:
        data = tmp_path / "records.json"
        data.write_text(json.dumps(records))
        folders = ["--images", str(whole.parent), "--tokenizer", str(tokenizer_folder)]
        return prepare.main(["check", str(data), *folders, "--image-tokens", "4", "--workers", "1", *options])

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
    assert (summary["records"], summary["bad"], summary["image_tokens"]) == (11, 9, 4)
    assert [bad["index"] for bad in summary["bad_records"]] == list(range(1, 10))
    assert report.with_suffix(".txt").read_text().count("'book.gif' is there; rename it") == 1
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
    assert check([{**BAD[4][0], "id": f"m{i}"} for i in range(9)]) == 1
    out = capsys.readouterr().out
    assert "fault: 9 x empty turn" in out and "m4" in out and "m5" not in out


def test_what_cannot_be_checked_is_one_line(
    check: Callable[..., int], tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, broken = str(tmp_path / "images"), tmp_path / "broken.json"
    broken.write_text("[{]")
    (tmp_path / "hollow").mkdir()
    known = ["--images", images, "--tokenizer", str(tokenizer_folder)]
    for arguments, message in (
        ([str(tmp_path / "no.json"), *known], "no.json does not exist"),
        ([str(broken), *known], "broken.json: line 1: not JSON"),
        ([str(broken), *known[:3], str(broken)], "broken.json must be a folder"),
        ([str(broken), "--images", images], "its tokenizer folder is not known; give --tokenizer DIR"),
        ([str(broken), "data=x", *known], "'data=x': a record file takes options"),
        ([str(tmp_path / "no.yaml")], "no.yaml: no such file; recipe or method 'no' is not known"),
    ):
        assert prepare.main(["check", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert check(GOOD, "--template", "vicuna_v7") == 2 and "vicuna_v7" in capsys.readouterr().err
    assert check(GOOD, "--tokenizer", str(tmp_path / "hollow")) == 2
    assert "hollow: no tokenizer there can be read" in capsys.readouterr().err
    assert check(GOOD, "--report", "report.txt") == 2
    assert "'report.txt' must end in .json" in capsys.readouterr().err
    assert check(GOOD, "--workers", "0") == 2
    assert "'0' must be a whole number, 1 or more" in capsys.readouterr().err


def test_nothing_is_checked_twice(
    check: Callable[..., int], tmp_path: Path, save_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has changed: the records, a setting, or an image of the chunk."""
    monkeypatch.setattr(audit, "CHUNK", 4)
    for name in ("c.jpg", "d.jpg", "e.jpg"):
        save_image(name)
    images = ["a.jpg", "c.jpg", "d.jpg", "e.jpg"]
    records = [{**GOOD[0], "id": f"{image}{i}", "image": image} for image in images for i in range(4)]
    looked_at: list[int] = []
    inner = Checker.__call__
    monkeypatch.setattr(
        Checker, "__call__", lambda self, index, row: looked_at.append(index) or inner(self, index, row)
    )

    def look(*options: str, content: list[Any] = records) -> list[int]:
        looked_at.clear()
        check(content, "--report", str(tmp_path / "report.json"), *options)
        return list(looked_at)

    assert look() == list(range(16)) and look() == []
    first = (tmp_path / "report.json").read_bytes()
    (tmp_path / "images" / "c.jpg").unlink()
    assert look() == [4, 5, 6, 7] and json.loads((tmp_path / "report.json").read_text())["bad"] == 4
    save_image("c.jpg")
    assert look() == [4, 5, 6, 7] and (tmp_path / "report.json").read_bytes() == first
    assert look("--max-length", "60") == list(range(16))
    assert look(content=records[:15]) == list(range(15))
    assert look() == []


def test_a_torn_line_costs_one_chunk(
    check: Callable[..., int], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CHUNK", 4)
    records, report = GOOD * 10, tmp_path / "report.json"
    assert check(records, "--report", str(report)) == 0
    whole = report.read_bytes()
    (journal,) = (cache / "checks").glob("*.jsonl")
    lines = journal.read_text()
    journal.write_text(lines[: len(lines) - 30])
    inner, checked = audit.check_chunk, []

    def watch(*arguments: Any) -> Any:
        chunk = inner(*arguments)
        checked.append(arguments[2][0] if chunk else None)
        return chunk

    monkeypatch.setattr(audit, "check_chunk", watch)
    assert check(records, "--report", str(report)) == 0
    assert checked == [None] * 4 + [16]
    assert report.read_bytes() == whole and journal.read_text() == lines


def test_one_check_at_a_time(check: Callable[..., int], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(GOOD) == 0
    (journal,) = (cache / "checks").glob("*.jsonl")
    with hold(journal):
        assert check(GOOD) == 2
    assert "another check of" in capsys.readouterr().err


def test_a_recipe_names_what_is_checked(
    check: Callable[..., int], tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(GOOD)  # writes the records
    tower = tmp_path / "tower"
    CLIPVisionConfig(image_size=28, patch_size=7).save_pretrained(tower)
    base = {"data": str(tmp_path / "records.json"), "images": "nowhere", "max_length": 200, "learning_rate": 1e-3}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**base, "language_model": str(tokenizer_folder)}))
    (tmp_path / "recipe.yaml").write_text("include: base.yaml\ntemplate: vicuna_v1\n")
    method = tmp_path / "method.yaml"
    method.write_text("vision: {name: none}\n")
    recipe = [str(tmp_path / "recipe.yaml"), str(method), f"images={tmp_path / 'images'}", f"vision_tower={tower}"]
    report = ["--report", str(tmp_path / "report.json")]
    assert prepare.main(["check", *recipe, *report]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["records"], found["image_tokens"], found["max_length"]) == (2, 16, 200)
    assert prepare.main(["check", *recipe, "max_length=201", "template=plain", *report, "--image-tokens", "3"]) == 1
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["template"], found["image_tokens"], found["max_length"]) == ("plain", 3, 201)
    capsys.readouterr()
    for change, message in (
        ("learning_rate=1", "setting 'learning_rate' is not known"),
        ("max_length=long", "--max-length: 'long' must be a whole number"),
        ("images=nowhere", "nowhere does not exist"),
        (f"vision_tower={tokenizer_folder}", "no readable config.json"),
        ("data=null", "names no data"),
    ):
        assert prepare.main(["check", *recipe, change]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error


def test_placeholders_of_models_and_towers(tmp_path: Path) -> None:
    CLIPConfig(vision_config={"image_size": 224, "patch_size": 14}).save_pretrained(tmp_path / "clip")
    LlavaConfig(image_seq_length=576).save_pretrained(tmp_path / "llava")
    (tmp_path / "open").mkdir()
    settings = {"model_cfg": {"vision_cfg": {"image_size": 96, "patch_size": 8}}}
    (tmp_path / "open" / "open_clip_config.json").write_text(json.dumps(settings))
    LlamaConfig().save_pretrained(tmp_path / "llama")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "open_clip_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="describes no vision tower"):
        count_image_tokens(tmp_path / "hollow")
    assert [count_image_tokens(tmp_path / name) for name in ("clip", "llava", "open")] == [256, 576, 144]
    with pytest.raises(RecipeError, match="a 'llama' is neither a vision tower nor"):
        count_image_tokens(tmp_path / "llama")


@pytest.mark.slow
def test_a_killed_check_goes_on_where_it_was(
    cache: Path, tmp_path: Path, save_image: Callable[..., Path], tokenizer_folder: Path
) -> None:
    """kill -9 while two processes work, ten times; the report is that of a check nobody disturbed."""
    save_image("a.jpg", size=(700, 500))
    data = tmp_path / "records.json"
    data.write_text(json.dumps([*GOOD * 1500, *(record for record, _ in BAD), *GOOD * 1500]))
    command = [sys.executable, "-m", "llava_prumerge.data.prepare", "check", str(data), "--workers", "2"]
    command += ["--images", str(tmp_path / "images"), "--tokenizer", str(tokenizer_folder), "--image-tokens", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    known, kills = 0, 0
    for _ in range(10):
        process = subprocess.Popen([*command, "--report", str(tmp_path / "a.json")], env=environment, cwd=ROOT)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            journal = next((cache / "checks").glob("*.jsonl"), None) if (cache / "checks").is_dir() else None
            if journal and len(audit.read_journal(journal)) > known:
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
        known = len(audit.read_journal(next((cache / "checks").glob("*.jsonl"))))
    assert kills >= 5 and known > 5
    assert subprocess.run([*command, "--report", str(tmp_path / "a.json")], env=environment, cwd=ROOT).returncode == 1
    environment["LLAVA_PRUMERGE_CACHE"] = str(tmp_path / "fresh")
    assert subprocess.run([*command, "--report", str(tmp_path / "b.json")], env=environment, cwd=ROOT).returncode == 1
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.slow
def test_workers_find_the_same(check: Callable[..., int], cache: Path, tmp_path: Path) -> None:
    records = [*GOOD * 20, *(record for record, _ in BAD)] * 20
    reports = []
    for workers in ("1", "2"):
        shutil.rmtree(cache, ignore_errors=True)
        assert check(records, "--workers", workers, "--report", str(tmp_path / "report.json")) == 1
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    assert reports[0] == reports[1]


def test_help_and_conversation_import_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets")
    code = (
        "import sys, llava_prumerge.data.conversation, llava_prumerge.data.prepare as p\n"
        f"assert p.main(['check', '--help']) == 0 and not [m for m in {heavy} if m in sys.modules]"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--max-length" in result.stdout
