"""Answer files that do not belong to their references are refused, and the message says why."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.benchmark import Files, Question
from llava_prumerge.evaluation.mmbench import MmBench, is_empty
from llava_prumerge.evaluation.mme import Mme
from llava_prumerge.evaluation.pope import Pope
from llava_prumerge.evaluation.records import EvaluationError, read_records
from llava_prumerge.evaluation.sqa import ScienceQa
from llava_prumerge.evaluation.textvqa import TextVqa
from llava_prumerge.evaluation.vqav2 import VqaV2

SUFFIX = "Answer the question using a single word or phrase."


@pytest.fixture
def pope(write) -> tuple[Files, list[dict]]:
    """Two splits of one image, and answers that are right for both objects but one."""
    labels = [
        {"question_id": n, "image": "a.jpg", "text": f"Is there a {what}?"} for n, what in enumerate(("cat", "dog"), 1)
    ]
    for split in ("random", "popular"):
        labelled = [record | {"label": "yes" if "cat" in record["text"] else "no"} for record in labels]
        path = write(f"coco/coco_pope_{split}.jsonl", labelled)
        path.rename(path.with_suffix(".json"))
    questions = [
        record
        | {"question_id": 10 * at + record["question_id"], "text": f"{record['text']}\n{SUFFIX}", "category": split}
        for at, split in enumerate(("random", "popular"))
        for record in labels
    ]
    path = write("questions.jsonl", questions)
    answers = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": "Yes" if "cat" in q["text"] else "No"}
        for q in questions
    ]
    answers[3]["text"] = "Yes"
    return Files(path, path.parent / "coco"), answers


def test_pope_is_scored_by_key(pope, write) -> None:
    files, answers = pope
    score = Pope().score(write("answers.jsonl", answers[::-1]), files)
    assert score.metrics["random"]["f1"] == 100 and score.metrics["popular"]["f1"] == pytest.approx(200 / 3)
    assert score.headline == pytest.approx(250 / 3)
    assert score.marks == [1, 1, 1, 0] and score.chance == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answers: answers[:-1], r"3 entries do not match the 4 .* missing 1 \('12'\)"),
        (lambda answers: [*answers, answers[0]], r"duplicate entries for 1 \('1'\)"),
        (lambda answers: [*answers, answers[0] | {"question_id": 77}], r"not asked 1 \('77'\)"),
        (lambda answers: [answers[0] | {"prompt": "Is there a cow?"}, *answers[1:]], r"other questions .* 1 \('1'\)"),
        (lambda answers: [answers[0] | {"text": None}, *answers[1:]], "answer to 1 is None, not text"),
        (lambda answers: [{"text": "Yes"}, *answers[1:]], "a record has no 'question_id', only text"),
        (lambda answers: ["Yes"], "every record must be a JSON object"),
    ],
)
def test_pope_refuses_other_files(pope, write, change, message: str) -> None:
    files, answers = pope
    with pytest.raises(EvaluationError, match=message):
        Pope().score(write("answers.jsonl", change(answers)), files)


def test_pope_names_a_missing_label_file(pope, write) -> None:
    files, answers = pope
    (files.annotations / "coco_pope_popular.json").unlink()
    with pytest.raises(
        EvaluationError, match=r"no coco_pope_popular.json, which the questions of category 'popular' need"
    ):
        Pope().score(write("answers.jsonl", answers), files)


def test_a_cut_off_file_is_not_scored(pope, write) -> None:
    files, answers = pope
    path = write("answers.jsonl", answers)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(EvaluationError, match="line 4: not a JSON object, the file may be cut off"):
        Pope().score(path, files)


def test_a_limited_run_is_scored_on_what_was_asked(pope, write) -> None:
    files, answers = pope
    asked = Pope().questions(files)[:2]
    assert Pope().score(write("answers.jsonl", answers[:2]), files, only=asked).n == 2


def test_gzip_is_recognised_by_content(pope, write) -> None:
    files, answers = pope
    path = write("answers.jsonl", answers)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_records(path) == answers
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(EvaluationError, match="cannot be decompressed"):
        read_records(path)


def test_textvqa_joins_on_image_and_question(write) -> None:
    data = [{"image_id": "i", "question": f"What {thing}?", "answers": ["red"] * 10} for thing in ("now", "Then")]
    files = Files(annotations=write("a.json", {"data": data}))
    answers = [
        {"question_id": "i", "prompt": f"what {thing}?\nReference OCR token: \n{SUFFIX}", "text": text}
        for thing, text in (("then", "Red."), ("now", "blue"))
    ]
    assert TextVqa().score(write("answers.jsonl", answers), files).marks == [0, 1]
    with pytest.raises(EvaluationError, match="no question can be read from the prompt"):
        TextVqa().score(write("bad.jsonl", [answers[0] | {"prompt": "What then?"}]), files)
    with pytest.raises(EvaluationError, match="has 9 answers"):
        files = Files(annotations=write("b.json", {"data": [data[0] | {"answers": ["x"] * 9}]}))
        TextVqa().references(files)


def test_vqav2_takes_result_files_and_llavas(write) -> None:
    annotations = [
        {"question_id": n, "answer_type": kind, "answers": [{"answer": "yes"}] * 10}
        for n, kind in ((1, "yes/no"), (2, "other"))
    ]
    files = Files(annotations=write("a.json", {"annotations": annotations}))
    official = write("results.json", [{"question_id": 2, "answer": "no"}, {"question_id": 1, "answer": "Yes."}])
    llava = write("answers.jsonl", [{"question_id": 2, "text": "no"}, {"question_id": 1, "text": "Yes."}])
    for path in (official, llava):
        metrics = VqaV2().score(path, files).metrics
        assert metrics == {"overall": 50, "yes/no": 100, "other": 0, "mode": "normalised"}
        assert VqaV2().score(path, files, mode="official").headline == 0
    with pytest.raises(EvaluationError, match="mode must be one of normalised, official, not 'strict'"):
        VqaV2().score(official, files, mode="strict")
    with pytest.raises(EvaluationError, match="unknown setting 'style'; it has mode"):
        VqaV2().score(official, files, style="x")
    questions = write("q.json", {"questions": [{"question_id": 1}]})
    with pytest.raises(EvaluationError, match="not match the 2"):
        VqaV2().score(official, Files(questions, files.annotations))


def test_vqav2_submission_holds_every_test_id(write, tmp_path: Path) -> None:
    questions = [{"question_id": n, "image": "x.jpg", "text": "q"} for n in (1, 2, 3)]
    write("llava_vqav2_mscoco_test2015.jsonl", questions)
    files = Files(write("llava_vqav2_mscoco_test-dev2015.jsonl", questions[:2]))
    answers = write("answers.jsonl", [{"question_id": 2, "text": "Two dogs."}, {"question_id": 1, "text": "A cat's"}])
    submission = VqaV2().submit(answers, files, tmp_path / "upload" / "vqav2")
    assert json.loads(submission.read_text()) == [
        {"question_id": 1, "answer": "cat 's"},
        {"question_id": 2, "answer": "2 dogs"},
        {"question_id": 3, "answer": ""},
    ]
    with pytest.raises(EvaluationError, match="missing 1"):
        VqaV2().submit(write("short.jsonl", [{"question_id": 2, "text": "x"}]), files, tmp_path / "upload")


def mme_folder(write, subtask: str, rows: list[tuple[str, ...]]) -> Path:
    return write(f"truth/{subtask}.txt", "".join("\t".join(row) + "\n" for row in rows)).parent


def test_mme_groups_by_image_not_by_line(write) -> None:
    rows = [(f"{image}.jpg", f"Is it {n}? Please answer yes or no.", "Yes") for n in (1, 2) for image in "ab"]
    folder = mme_folder(write, "count", rows)
    answers = [
        {
            "question_id": f"count/images/{image}.jpg",
            "prompt": f"Is it {n}?\n{SUFFIX}",
            "text": "yes" if image == "a" else "no",
        }
        for n in (1, 2)
        for image in "ab"
    ]
    score = Mme().score(write("answers.jsonl", answers), Files(annotations=folder))
    assert score.metrics["count"] == 50 + 50 and score.metrics["perception"] == 100 and score.metrics["cognition"] == 0
    answers[0]["text"] = "other"  # image a loses one answer, and its pair
    score = Mme().score(write("answers.jsonl", answers), Files(annotations=folder))
    assert score.metrics["count"] == 25 and score.metrics["other"] == 1


def test_mme_refuses_uneven_images_and_missing_subtasks(write, tmp_path: Path) -> None:
    folder = mme_folder(write, "count", [("a.jpg", "Is it? Please answer yes or no.", "Yes")])
    with pytest.raises(EvaluationError, match="must have two questions, not so 1"):
        Mme().references(Files(annotations=folder))
    rows = [("a.txt", f"Is it {n}?", "Yes", "no") for n in (1, 2)]
    folder = mme_folder(write, "count", rows)
    with pytest.raises(EvaluationError, match="no results for existence, position"):
        Mme().score(folder, Files())
    mme_folder(write, "count", [*rows[:1], (*rows[1][:3], "no\tway")])
    with pytest.raises(EvaluationError, match="row 2 has 5 tab-separated fields, not 4"):
        Mme().score(folder, Files(annotations=folder))
    with pytest.raises(EvaluationError, match="no such folder"):
        Mme().references(Files(annotations=tmp_path / "nowhere"))


def test_mme_reads_the_release_layout(write, tmp_path: Path) -> None:
    for subtask, inner in (("OCR", ""), ("scene", "questions_answers_YN/")):
        write(f"release/{subtask}/{inner}x.txt", "Is it red? Please answer yes or no.\tYes\nIs it blue?\tNo\n")
    assert len(Mme().references(Files(annotations=tmp_path / "release"))) == 4
    for subtask in ("OCR", "scene"):
        path = write(f"packed/{subtask}.txt", "x.jpg\tIs it red?\tYes\nx.jpg\tIs it blue?\tNo\n")
        path.with_name(f"{subtask}.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert len(Mme().references(Files(annotations=tmp_path / "packed"))) == 4


def test_sqa_answers_outside_the_choices_are_wrong_not_failed(write) -> None:
    problems = {
        "1": {"choices": ["x", "y"], "answer": 1, "image": None},
        "2": {"choices": ["x"], "answer": 0, "image": "i"},
    }
    files = Files(annotations=write("p.json", problems), split=write("s.json", {"test": ["1", "2"]}))
    answers = write("answers.jsonl", [{"question_id": 2, "text": "A. x"}, {"question_id": "1", "text": "D"}])
    metrics = ScienceQa().score(answers, files).metrics
    assert (metrics["img_accuracy"], metrics["accuracy"], metrics["failed"], metrics["no_such_option"]) == (
        100,
        50,
        0,
        1,
    )
    with pytest.raises(EvaluationError, match=r"no problems for 1 \('3'\)"):
        ScienceQa().references(Files(annotations=files.annotations, split=write("t.json", {"test": ["3"]})))


MMBENCH = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n"


def test_mmbench_questions_answers_and_upload(write, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    picture = "A" * 100
    table = write(
        "dev.tsv",
        MMBENCH
        + f"3\tWhat?\tLook.\tred\tblue\tNone\t\tA\tc\t{picture}\ts\tl\tx\tdev\n"
        + '1000003\t"What?\nTwo lines"\tnan\t=blue\tred\t\t\tB\tc\t3\ts\tl\tx\tdev\n',
    )
    files = Files(table, table)
    first, second = MmBench().questions(files)
    assert first.prompt == "Look.\nWhat?\nA. red\nB. blue" and second.prompt == "What?\nTwo lines\nA. =blue\nB. red"
    assert first.text.endswith("\nAnswer with the option's letter from the given choices directly.")
    assert first.embedded == second.embedded == picture and first.extra["option_char"] == ["A", "B"]
    answers = [
        {"question_id": q.id, "prompt": q.prompt, "text": text, **q.extra}
        for q, text in ((second, "B"), (first, "red"))
    ]
    path = write("answers.jsonl", answers)
    metrics = MmBench().score(path, files).metrics
    assert (metrics["circular"], metrics["vanilla"], metrics["incomplete_groups"]) == (100, 100, 1)
    upload = MmBench().submit(path, files, tmp_path / "upload")
    rows = list(openpyxl.load_workbook(upload).active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (3, "What?", "red", "blue", "None", None, "red", "A", "dev")
    assert rows[2][2] == "=blue"
    upload.write_bytes(gzip.compress(upload.read_bytes()))
    assert MmBench().score(upload, Files()).metrics == MmBench().score(upload, files).metrics == metrics
    with pytest.raises(EvaluationError, match="rotates options itself"):
        MmBench().score(write("rounds.jsonl", [answers[0] | {"round_id": 1}]), files)


def test_empty_cells_are_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    from io import StringIO

    for cell in ("NA", "N/A", "null", "#N/A", "nan", "1.#QNAN", "None", "x", "nul", "-"):
        read = pandas.read_table(StringIO(f"a\tb\n1\t{cell}\n"))["b"][0]
        assert is_empty(cell) is bool(pandas.isna(read)), cell


def test_registry_is_the_folder() -> None:
    assert {"mmbench", "mme", "pope", "sqa", "textvqa", "vqav2"} < set(benchmark.names())
    assert "judged" not in benchmark.names() and len(benchmark.names()) == 17
    assert {benchmark.find(name).name for name in benchmark.names()} == set(benchmark.names())
    with pytest.raises(EvaluationError, match="unknown task 'okvqa'; there are activitynet_qa, gqa"):
        benchmark.find("okvqa")


def test_question_keys_tell_equal_ids_apart() -> None:
    assert Question(1, "a", "a").key != Question(1, "b", "b").key


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "eval.run", *arguments], capture_output=True, text=True, check=False)


def test_command_prints_one_json_object(pope, write) -> None:
    files, answers = pope
    common = ["score", "--task", "pope", "--questions", str(files.questions), "--annotations", str(files.annotations)]
    done = run(*common, "--answers", str(write("answers.jsonl", answers)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["mean_f1"] == pytest.approx(250 / 3)
    done = run(*common, "--answers", str(write("answers.jsonl", answers[:1])))
    assert done.returncode == 2 and done.stdout == "" and "missing 3 ('2', '11', '12')" in done.stderr
    assert "Traceback" not in done.stderr
    assert "mode" in run(*common, "--answers", "x", "mode").stderr


def test_scoring_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, llava_prumerge.evaluation.run, llava_prumerge.evaluation.benchmark as b; [b.find(n) for n in b.names()]; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
