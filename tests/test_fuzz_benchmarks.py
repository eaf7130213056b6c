"""Damaged and odd questions, annotations, answers, grades and tables of every benchmark: an error or a score, no traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import bend, outcome, spoil, turns

from llava_prumerge.evaluation.benchmark import Files, find, names

TRIES = 45
"""Spoilt files per benchmark."""
SUFFIX = "\nAnswer the question using a single word or phrase."


def pope(folder: Path) -> dict[str, Any]:
    asked = [
        {"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a {w}?{SUFFIX}", "category": "random"}
        for n, w in enumerate(("cat", "dog", "cow", "cup"))
    ]
    labels = [{"image": r["image"], "text": r["text"].removesuffix(SUFFIX), "label": "yes"} for r in asked]
    return {"questions": asked, "coco/coco_pope_random.json": labels, "answers": said(asked)}


def said(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"question_id": one["question_id"], "prompt": one["text"], "text": "yes"} for one in asked]


def vqav2(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": n, "image": f"{n}.jpg", "text": f"What {n}?{SUFFIX}"} for n in (1, 2)]
    truth = [{"question_id": n, "answer_type": "other", "answers": [{"answer": "yes"}, {"answer": 3}]} for n in (1, 2)]
    return {"questions": asked, "annotations": {"annotations": truth}, "answers": said(asked)}


def textvqa(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": f"i{n}", "image": f"{n}.jpg", "text": f"what {n}?{SUFFIX}"} for n in (1, 2)]
    truth = [{"image_id": f"i{n}", "question": f"What {n}?", "answers": ["yes"] * 10} for n in (1, 2)]
    return {"questions": asked, "annotations": {"data": truth}, "answers": said(asked)}


def sqa(folder: Path) -> dict[str, Any]:
    asked = [
        {"id": str(n), "image": "a.png", "conversations": turns(f"<image>\nq{n}?\nA. x\nB. y", "A")} for n in (1, 2)
    ]
    problems = {str(n): {"choices": ["x", "y"], "answer": 0, "image": "a.png"} for n in (1, 2)}
    answers = [{"question_id": str(n), "prompt": "p", "text": "A"} for n in (1, 2)]
    return {"questions": asked, "annotations": problems, "split": {"test": ["1", "2"]}, "answers": answers}


def gqa(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": str(n), "image": f"{n}.jpg", "text": f"is it {n}?"} for n in (1, 2)]
    truth = {
        str(n): {
            "question": f"is it {n}?",
            "answer": "yes",
            "isBalanced": True,
            "types": {"structural": "verify", "semantic": "obj"},
            "groups": {"global": "colour"},
            "semantic": [{"operation": "select", "argument": "dog (1)"}],
        }
        for n in (1, 2)
    }
    return {"questions": asked, "annotations": truth, "answers": said(asked)}


def vizwiz(folder: Path) -> dict[str, Any]:
    truth = [
        {
            "image": f"VizWiz_val_0000000{n}.jpg",
            "question": "What?",
            "answers": [{"answer": "yes"}, {"answer": "no"}],
            "answer_type": "other",
            "answerable": 1,
        }
        for n in (1, 2)
    ]
    answers = [{"question_id": one["image"], "text": "yes"} for one in truth]
    return {"questions": truth, "annotations": truth, "answers": answers}


def seed_bench(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": str(n), "image": f"{n}.jpg", "text": f"q{n}?\nA. x\nB. y"} for n in (1, 2)]
    truth = [
        {"question_id": str(n), "answer": "A", "question_type_id": 1, "data_type": "image", "choice_a": "x"}
        for n in (1, 2)
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2}
    answers = [{"question_id": str(n), "text": "A"} for n in (1, 2)]
    return {"questions": asked, "annotations": {"questions": truth, "question_type": types}, "answers": answers}


def mmvet(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": str(n), "image": f"{n}.jpg", "text": f"q{n}?"} for n in (1, 2)]
    truth = {f"v1_{n}": {"question": f"q{n}?", "answer": "a<AND>b", "capability": ["ocr", "rec"]} for n in (1, 2)}
    grades = {f"v1_{n}": {"score": [0.5, 1.0]} for n in (1, 2)}
    return {"questions": asked, "annotations": truth, "answers": grades}


def llava_bench(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": n, "image": "1.jpg", "text": f"q{n}?", "category": "conv"} for n in (1, 2)]
    reviews = [{"question_id": n, "category": "conv", "tuple": [8, 7.5], "content": "8 7.5"} for n in (1, 2)]
    return {
        "questions": asked,
        "truth/context.jsonl": [{"image": "1.jpg", "caption": ["a dog", "a cat"]}],
        "truth/answers_gpt4.jsonl": [{"question_id": n, "text": "a dog"} for n in (1, 2)],
        "answers": reviews,
    }


def mmmu(folder: Path) -> dict[str, Any]:
    choice = {"id": "validation_Art_1", "question": "which <image 1>?", "options": "['x', 'y']", "answer": "A"}
    short = {"id": "validation_Music_2", "question": "how many?", "options": "[]", "answer": "3"}
    rows = [choice | {"question_type": "multiple-choice", "image_1": "QUJD"}, short | {"question_type": "open"}]
    answers = [{"question_id": row["id"], "prompt": "p", "text": "A"} for row in rows]
    return {"questions": rows, "annotations": rows, "answers": answers}


def video_qa(folder: Path) -> dict[str, Any]:
    asked = [{"video_name": f"clip{n}", "question_id": f"q{n}", "question": "who?"} for n in (1, 2)]
    truth = [{"question_id": f"q{n}", "answer": "a dog", "type": n} for n in (1, 2)]
    answers = [{"id": f"q{n}", "pred": "Dog."} for n in (1, 2)]
    return {"questions": asked, "annotations": truth, "answers": answers}


VIDEOS = ("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa")
WORLDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pope": pope,
    "vqav2": vqav2,
    "textvqa": textvqa,
    "sqa": sqa,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "seed_bench": seed_bench,
    "mmvet": mmvet,
    "llava_bench": llava_bench,
    "mmmu": mmmu,
    **dict.fromkeys(VIDEOS, video_qa),
}
IN_TABLES = {"mme", "mmbench", "mmbench_cn"}
TRUTHS = {"pope": "coco", "llava_bench": "truth"}


def is_lines(name: str, part: str, content: Any) -> bool:
    """Whether a part of a benchmark is JSON lines."""
    listed = isinstance(content, list) and (part in ("questions", "answers") or part.endswith(".jsonl"))
    whole = {(one, "questions") for one in ("sqa", "vizwiz", *VIDEOS)}
    return (listed and (name, part) not in whole) or (name, part) == (
        "mmmu",
        "annotations",
    )


def score(name: str, folder: Path, parts: dict[str, Any], raw: dict[str, bytes]) -> Any:
    """Writes a benchmark's files and scores its answers."""
    for part, content in parts.items():
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = is_lines(name, part, content) and isinstance(content, list)
        text = "".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content)
        path.write_bytes(raw.get(part, text.encode()))
    truth = folder / TRUTHS.get(name, "annotations")
    split = folder / "split" if name == "sqa" else None
    files, task = Files(folder / "questions", truth, split), find(name)
    task.questions(files)
    if name in ("mmvet", "llava_bench"):  # their references are read when a judge grades
        task.references(files)
    return task.score(folder / "answers", files)


def test_every_benchmark_is_tried() -> None:
    assert set(names()) == {*WORLDS, *IN_TABLES}


@pytest.mark.parametrize("name", WORLDS)
def test_annotations_questions_and_answers(name: str, tmp_path: Path) -> None:
    draw, scored = random.Random(name), 0
    sound = score(name, tmp_path / "sound", WORLDS[name](tmp_path), {})
    for number in range(TRIES):
        parts, raw = WORLDS[name](tmp_path), {}
        part = draw.choice(list(parts))
        if number % 3:
            parts[part] = bend(parts[part], draw)
        else:
            text = json.dumps(parts[part])
            if is_lines(name, part, parts[part]):
                text = "".join(json.dumps(one) + "\n" for one in parts[part])
            raw[part] = spoil(text.encode(), draw)
        folder = tmp_path / str(number)
        found = outcome(lambda: score(name, folder, parts, raw))  # noqa: B023 (it runs at once)
        if found is not None:
            scored += 1
            assert 0 <= found.headline <= find(name).maximum and found.n <= sound.n
            assert all(0 <= mark <= 1 for mark in found.marks)
    assert scored < TRIES


def table(rows: list[str]) -> bytes:
    return "\n".join(["index\tquestion\tA\tB\tanswer\timage\thint", *rows]).encode()


def test_tables_and_workbooks(tmp_path: Path) -> None:
    """MMBench's table, and an upload workbook, damaged."""
    from llava_prumerge.evaluation.mmbench import write_workbook

    draw, task, picture = random.Random(5), find("mmbench"), "QUJD" * 40
    rows = [f"{n}\tq{n}?\tx\ty\tA\t{picture}\t" for n in (1, 2)]
    path, answers = tmp_path / "table.tsv", tmp_path / "answers"
    answers.write_text("".join(json.dumps({"question_id": n, "text": "A"}) + "\n" for n in (1, 2)))
    path.write_bytes(table(rows))
    assert task.score(answers, Files(path, path)).headline == 100
    book = write_workbook(tmp_path / "a.xlsx", ["index", "A", "B", "answer", "prediction"], [[1, "x", "y", "A", "A"]])
    assert task.score(book, Files()).headline == 100
    whole = book.read_bytes()
    for number in range(40):
        if number % 2:
            path.write_bytes(spoil(table(rows), draw))
            outcome(lambda: (task.questions(Files(path, path)), task.score(answers, Files(path, path))))
        else:
            spoilt = tmp_path / "spoilt.xlsx"
            spoilt.write_bytes(spoil(whole, draw))
            outcome(lambda: task.score(spoilt, Files()))  # noqa: B023
