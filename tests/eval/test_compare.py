"""The comparison shows every result, pairs what can be paired, and names a part of a benchmark as such."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from llava_prumerge.evaluation.benchmark import Files
from llava_prumerge.evaluation.compare import compare, main, paired, to_csv, to_markdown
from llava_prumerge.evaluation.pope import Pope
from llava_prumerge.evaluation.tables import make_tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of results: two methods and none on the same POPE questions, and one method on others."""

    def save(name: str, label: str, method: str, marks: list[int], questions: str = "q", **more: Any) -> None:
        path = tmp_path / name / "pope.json"
        path.parent.mkdir()
        row = {"model": "tiny", "label": label, "method": method, "train": "none", "images": "on"} | more
        scored = {"value": 50.0, "interval_95": [40.0, 60.0], "n": len(marks), "metric": "mean_f1", "marks": marks}
        kept = {"mean": 144.0 if method == "fastv" else 36.0, "equivalent": 36.0, "share": 25.0}
        generation = {"questions": questions, "images": row["images"]}
        path.write_text(json.dumps({"task": "pope", "row": row, "kept": kept, "generation": generation, **scored}))

    save("a", "none", "none", [1, 1, 0, 1])
    save("b", "prumerge", "prumerge", [1, 0, 0, 1])
    save("c", "fastv", "fastv", [0, 0, 1, 1], questions="others")
    save("d", "none", "none", [0, 0, 0, 1], images="off", questions="no images")
    return tmp_path


def test_every_result_is_a_row_and_pairs_are_of_the_same_questions(folder: Path) -> None:
    shown = compare([folder])
    assert [entry.name for entry in shown.entries] == ["none (on)", "prumerge (on)", "fastv (on)", "none (off)"]
    assert shown.baseline is shown.entries[0]
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(to_csv(shown)))}
    marks = [0, -1, 0, 0]
    centre = sum(marks) / 4
    half = 1.959963984540054 * math.sqrt(sum((mark - centre) ** 2 for mark in marks) / 3 / 4)
    assert float(rows["prumerge (on)"]["difference"]) == pytest.approx(100 * centre)
    assert float(rows["prumerge (on)"]["difference_half"]) == pytest.approx(100 * half)
    assert rows["fastv (on)"]["difference"] == "" and rows["fastv (on)"]["equivalent"] == "36.0"
    assert float(rows["none (off)"]["difference"]) == pytest.approx(-50.0)
    assert (rows["fastv (on)"]["tokens"], rows["prumerge (on)"]["tokens"]) == ("144.0", "36.0")


def test_markdown_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = to_markdown(compare([folder], "prumerge"))
    assert "| prumerge (on) | 36.0 | 36.0 | 50.0 [40.0, 60.0] n=4 |" in text
    assert "Differences from prumerge (on)" in text and "| none (on) | +25.0 ± 49.0 |" in text
    assert main([str(folder), "--format", "csv", "--out", str(folder / "out.csv")]) == 0
    assert len((folder / "out.csv").read_text().splitlines()) == 5
    assert main([str(folder)]) == 0 and "Differences from none (on)" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [(["absent"], "no such folder"), (["--baseline", "vtw"], "names 0 rows")])
def test_what_cannot_be_compared(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_rows_that_look_alike_are_told_apart(folder: Path) -> None:
    (folder / "b2").mkdir()
    (folder / "b2" / "pope.json").write_text((folder / "b" / "pope.json").read_text())
    names = [entry.name for entry in compare([folder]).entries]
    assert len(set(names)) == len(names) == 5


def test_a_part_of_a_benchmark_is_not_paired_with_the_whole(folder: Path) -> None:
    one = json.loads((folder / "b" / "pope.json").read_text())
    assert paired(one, one) == (0.0, 0.0) and paired(one, {**one, "part": "4 of 9 questions"}) is None


def test_tables_say_what_filled_no_row(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tables([folder], folder / "tables")
    assert "filled no row of the paper's tables" in caplog.text and "llava-prumerge compare" in caplog.text


def test_a_limited_score_names_its_part(write) -> None:
    """The first questions of LLaVA's POPE file are all of one split: their F1 is not the mean of three."""
    asked, labels = [], {"adversarial": [], "random": []}
    for split in labels:
        for at in range(3):
            image, text = f"{at}.jpg", "Is there a dog?"
            labels[split].append({"question_id": at, "image": image, "text": text, "label": "yes" if at else "no"})
            asked.append({"question_id": len(asked), "image": image, "text": text, "category": split})
    for split, records in labels.items():
        folder = write(f"coco/coco_pope_{split}.json", "".join(json.dumps(record) + "\n" for record in records)).parent
    task, files = Pope(), Files(write("asked.jsonl", asked), folder)
    answers = [{"question_id": at, "prompt": "Is there a dog?", "text": "yes"} for at in range(2)]
    score = task.score(write("answers.jsonl", answers), files, task.questions(files)[:2])
    assert score.part == "2 of 6 questions; adversarial alone"
    printed = task.report(score)
    assert "mean_f1" not in printed and printed[f"mean_f1 ({score.part})"] == score.headline
    assert task.describe(score)["metric"] == f"mean_f1 ({score.part})"
    whole = [{"question_id": at, "prompt": "Is there a dog?", "text": "yes"} for at in range(6)]
    assert "mean_f1" in task.report(task.score(write("whole.jsonl", whole), files))
