"""Odd question, annotation and answer files: the right result, or one line with file, place and what is accepted."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_prumerge.evaluation.answers import pending
from llava_prumerge.evaluation.benchmark import Files, Question, find, read_questions
from llava_prumerge.evaluation.mmbench import write_workbook
from llava_prumerge.evaluation.records import EvaluationError, read_json, read_placed, read_table, read_workbook
from llava_prumerge.evaluation.run import main
from llava_prumerge.ground.unpacking import VARIABLE

Write = Callable[[str, Any], Path]
ASKED = {"question_id": 1, "image": "a.jpg", "text": "Is it red?", "category": "random"}


def test_human_answers_may_be_numbers(write: Write) -> None:
    """3 and "3" are one answer; nine people against one who said 2.5."""
    humans = [{"answer": 3}, *({"answer": "3"} for _ in range(8)), {"answer": 2.5}]
    truth = write("truth.json", {"annotations": [{"question_id": 1, "answer_type": "number", "answers": humans}]})
    answers = write("answers.jsonl", [{"question_id": 1, "text": "three"}])
    assert find("vqav2").score(answers, Files(annotations=truth)).headline == 100
    truth = write("textvqa.json", {"data": [{"image_id": 5, "question": "how many?", "answers": [3] * 10}]})
    answers = write("a.jsonl", [{"question_id": "5", "prompt": "How many?\nx", "text": "3"}])
    assert find("textvqa").score(answers, Files(annotations=truth)).headline == 100
    for wrong in (None, True, [], {"a": 1}):
        truth = write("bad.json", {"annotations": [{"question_id": 1, "answers": [{"answer": wrong}]}]})
        with pytest.raises(EvaluationError, match="bad.json: a human answer must be text or a number, found"):
            find("vqav2").score(answers, Files(annotations=truth))


def test_an_image_marker_in_a_question_is_where_the_image_stands(write: Write) -> None:
    """One image, however often it is marked, in front of the text; the answer file keeps the question as it was."""
    texts = ["<image>\nIs it red?", "Is it red?\n<image>", "<image> <image>Is it red?"]
    path = write("q.jsonl", [ASKED | {"question_id": n, "text": text} for n, text in enumerate(texts)])
    assert [(one.text, one.prompt) for one in read_questions(path)] == [("Is it red?", text) for text in texts]
    assert read_questions(path)[2].place == f"{path}, line 3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "<image> red?", "image": None}, "line 2: the question says <image>, but has no image"),
        ({"text": "<image>"}, "line 2: the question is empty"),
        ({"text": 7}, "line 2: 'text' must be text, found 7"),
        ({"text": "\ud800"}, "line 2: the question is not valid Unicode"),
        ({"question_id": None}, "line 2: 'question_id' must be text or a whole number, found None"),
        ({"question_id": 1.5}, "line 2: 'question_id' must be text or a whole number, found 1.5"),
        ({"question_id": [1]}, "line 2: 'question_id' must be"),
        ({"image": 5}, "line 2: 'image' must be a path, found 5"),
    ],
)
def test_odd_questions_are_named_by_their_line(write: Write, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=f"q.jsonl, {message}"):
        read_questions(write("q.jsonl", [ASKED, ASKED | {"question_id": 2} | change]))


def test_places_count_blank_lines(write: Write) -> None:
    path = write("a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [place.rpartition(", ")[2] for place, _ in read_placed(path)] == ["line 1", "line 3"]
    with pytest.raises(EvaluationError, match="b.jsonl, line 2: every record must be a JSON object, found 3"):
        read_placed(write("b.jsonl", "{}\n3\n"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_gzip_unpacks_to_is_bounded(tmp_path: Path, mark: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "a.json", mark + json.dumps(["x" * 50_000]).encode()
    for packed in (gzip.compress(content), gzip.compress(content[:99]) + gzip.compress(content[99:]), content):
        path.write_bytes(packed)
        monkeypatch.setenv(VARIABLE, "100K")
        assert read_json(path) == ["x" * 50_000]
        monkeypatch.setenv(VARIABLE, "40000")
        with pytest.raises(EvaluationError, match=r"a.json: it (unpacks to more|is longer) than .*40,000"):
            read_json(path)
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(EvaluationError, match="must be a number of bytes such as 500M or 8G, not 'MUCH'"):
        read_json(path)
    monkeypatch.delenv(VARIABLE)
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(EvaluationError, match="a.json: cannot be decompressed: it is cut off"):
        read_json(path)


def test_what_a_workbook_unpacks_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = write_workbook(tmp_path / "a.xlsx", ["a"], [["x" * 30_000]])
    assert read_workbook(book) == [{"a": "x" * 30_000}]
    monkeypatch.setenv(VARIABLE, "20K")
    with pytest.raises(EvaluationError, match="a.xlsx: it unpacks to more than 20,480 bytes"):
        read_workbook(book)
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "b.xlsx").write_bytes(book.read_bytes()[:-50])
    with pytest.raises(EvaluationError, match="b.xlsx: it is a damaged zip file"):
        read_workbook(tmp_path / "b.xlsx")


def test_what_a_table_of_columns_unpacks_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary page makes 400 large values out of one; what the file says of its size is small."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {
        "id": "validation_Art_1",
        "question": "which?",
        "options": "['x', 'y']",
        "answer": "A",
        "padding": "p" * 9999,
    }
    path = tmp_path / "validation-0.parquet"
    parquet.write_table(arrow.Table.from_pylist([row | {"id": f"validation_Art_{n}"} for n in range(3)]), path)
    assert len(find("mmmu").questions(Files(tmp_path))) == 3
    large = row | {"question": "q" * 200_000}
    rows = [large | {"id": f"validation_Art_{n}"} for n in range(400)]
    parquet.write_table(arrow.Table.from_pylist(rows), path, use_dictionary=True)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setenv(VARIABLE, "20M")
    with pytest.raises(EvaluationError, match="validation-0.parquet: it unpacks to more than 20,971,520 bytes"):
        find("mmmu").questions(Files(tmp_path))
    monkeypatch.setenv(VARIABLE, "20K")
    with pytest.raises(EvaluationError, match="unpacks to more than 20,480 bytes"):
        find("mmmu").questions(Files(tmp_path))
    whole = path.read_bytes()
    for content in (
        whole[:-30],
        whole[: len(whole) // 2],
        b"",
        b"PAR1",
        whole[:4] + bytes(200) + whole[204:],
        b"version https://git",
    ):
        path.write_bytes(content)
        monkeypatch.delenv(VARIABLE, raising=False)
        with pytest.raises(EvaluationError, match="validation-0.parquet: cannot be read: "):
            find("mmmu").questions(Files(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\n1\t2\t3\n", "a.tsv, row 1: 3 cells under 2 column names"),
        (b"a\ta\n1\t2\n", "the header names 1 .'a'. more than once"),
        (b'a\tb\n1\t"2\n3\t4\n', "a.tsv, line 3: not a tab-separated table: unexpected end of data"),
        (b"PK\x03\x04rest", "it is a zip file, as workbooks"),
        ("a\tb\n".encode("utf-16"), "it is UTF-16, not UTF-8; convert it"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read_table(tmp_path / "a.tsv")


def test_a_tables_images_are_read_as_files_are(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base64 in lines and 16 bits are answered; what is broken is named by file and row, and <image> needs no traceback."""
    picture = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    deep, lines = base64.b64encode(file.getvalue()).decode(), base64.encodebytes(file.getvalue()).decode()
    table = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    table.parent.mkdir()

    def run(*pictures: str, question: str = "Is there?") -> int:
        with table.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened, delimiter="\t")
            writer.writerow(["index", "question", "hint", "A", "B", "C", "D", "answer", "image"])
            for at, one in enumerate(pictures):
                writer.writerow([at, question, "", "cat", "dog", "", "", "A", one])
        words = ["run", "--task", "mmbench", "--model", str(checkpoint), "--data", str(tmp_path)]
        return main([*words, "--out", str(tmp_path / f"out{len(list(tmp_path.iterdir()))}"), "max_new_tokens=2"])

    assert run(deep, lines, f"data:image/png;base64,{deep}") == 0
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
    assert len({json.loads(line)["text"] for line in Path(answers).read_text().splitlines()}) == 1
    assert run(deep, deep, question="<image>\nIs there?") == 0
    capsys.readouterr()
    assert run(deep, base64.b64encode(b"no image " * 20).decode()) == 2
    assert f"error: {table}, row 2 (index '1'): not an image: its image" in capsys.readouterr().err


def test_repeated_questions_are_found_in_one_pass(tmp_path: Path) -> None:
    """Twice the questions take about twice as long; counting each by itself would take four times."""

    def seconds(number: int) -> float:
        questions = [Question(at // 2, "p", "t") for at in range(number)]
        best = float("inf")
        for _ in range(3):
            begun = time.process_time()
            with pytest.raises(EvaluationError, match=f"asks {number // 2} "):
                pending(tmp_path / "a.jsonl", questions)
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(40_000) < 8 * seconds(10_000)
