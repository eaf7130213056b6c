"""GQA, VizWiz, SEED-Bench, MMBench-CN and MMMU: official rules on small files, and on real answers where they are."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from llava_prumerge.evaluation.benchmark import Files, find
from llava_prumerge.evaluation.gqa import distribution
from llava_prumerge.evaluation.mmmu_answers import as_numbers_and_texts, is_open_answer_right, read_choice
from llava_prumerge.evaluation.records import EvaluationError, read_json, read_records
from llava_prumerge.evaluation.vizwiz import average_precision


def gqa_record(question: str, answer: str, structural: str, group: str | None, balanced: bool = True) -> dict:
    return {
        "question": question,
        "answer": answer,
        "imageId": "1",
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": "obj", "detailed": "x"},
        "groups": {"global": group, "local": None},
        "semantic": [{"operation": "select", "argument": "dog (1)"}, {"operation": "exist", "argument": "?"}],
    }


def test_gqa(write, tmp_path: Path) -> None:
    truth = {
        "1": gqa_record("Is there a dog?", "yes", "verify", None),
        "2": gqa_record("What color is it?", "red", "query", "color"),
        "3": gqa_record("What color is that one?", "blue", "query", "color"),
        "4": gqa_record("Unasked?", "no", "verify", None, balanced=False),
    }
    asked = [
        {"question_id": key, "image": "1.jpg", "text": record["question"], "category": "default"}
        for key, record in truth.items()
    ]
    files = Files(write("asked.jsonl", asked[:3]), write("truth.json", truth))
    answers = write(
        "answers.jsonl",
        [
            {"question_id": "1", "text": "Yes."},
            {"question_id": "2", "text": "Red"},
            {"question_id": "3", "text": "red"},
        ],
    )
    task = find("gqa")
    score = task.score(answers, files)
    assert score.headline == pytest.approx(200 / 3) and score.metrics["binary"] == {
        "accuracy": 100.0,
        "correct": 1,
        "n": 1,
    }
    assert score.metrics["open"]["correct"] == 1 and score.metrics["steps"] == {
        "1": {"accuracy": pytest.approx(200 / 3), "correct": 2, "n": 3}
    }
    # red was said twice and is right once, blue never: (2 - 1)^2 / 1 + (0 - 1)^2 / 1, over 100
    assert score.metrics["distribution"] == pytest.approx(0.02)
    assert distribution([], []) == 0.0
    upload = task.submit(answers, files, tmp_path / "upload" / "gqa")
    assert upload and read_json(upload)[0] == {"questionId": "1", "prediction": "yes"}
    with pytest.raises(EvaluationError, match="missing"):
        task.score(write("short.jsonl", [{"question_id": "1", "text": "Yes."}]), files)


def test_gqa_published_answers(real, write) -> None:
    truth = real("round2/gqa_testdev_ood_head_questions.json.gz")
    expected, known = read_json(real("round2/expected.json"))["gqa_head_llava-v1.5-13b"], read_json(truth)
    answers = [
        one for one in read_records(real("round2/gqa_answers_llava-v1.5-13b.jsonl.gz")) if one["question_id"] in known
    ]
    score = find("gqa").score(write("answers.jsonl", answers), Files(None, truth))
    assert [score.metrics["correct"], score.n] == expected["accuracy"]
    assert score.metrics["distribution"] == pytest.approx(expected["distribution"], abs=1e-6)
    for name in ("open", "binary"):
        assert [score.metrics[name][key] for key in ("correct", "n")] == expected[name]
    for name in ("words", "steps", "structural", "semantic"):
        assert {key: [row["correct"], row["n"]] for key, row in score.metrics[name].items()} == expected[name]


def photo(name: str, answers: list[str], kind: str = "other", answerable: int = 1) -> dict:
    told = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
    return {"image": name, "question": "What is THIS?", "answers": told, "answer_type": kind, "answerable": answerable}


def test_vizwiz(write, tmp_path: Path) -> None:
    truth = write(
        "val.json",
        [
            photo("VizWiz_val_00000000.jpg", ["dont know"] * 5 + ["box"] * 5),
            photo("VizWiz_val_00000001.jpg", ["unanswerable"] * 10, "unanswerable", 0),
        ],
    )
    task, files = find("vizwiz"), Files(truth, truth)
    asked = task.questions(files)
    assert asked[0].id == "VizWiz_val_00000000.jpg" and asked[0].text.startswith("What is THIS?\nWhen the provided")
    said = [{"question_id": question.id, "text": text} for question, text in zip(asked, ("dont know", "Unanswerable"))]
    answers = write("answers.jsonl", said)
    assert task.score(answers, files).headline == 50.0  # "don't know" never equals the humans' "dont know"
    both = task.score(answers, files, mode="both_normalised")
    assert both.headline == 100.0 and both.metrics["unanswerable_f1"] == 100.0
    numbered = write("numbered.jsonl", [{"question_id": at, "text": one["text"]} for at, one in enumerate(said)])
    assert task.score(numbered, files).headline == 50.0
    test = Files(write("llava_test.jsonl", [{"question_id": 0, "image": "a.jpg", "text": "What?"}]))
    upload = task.submit(write("said.jsonl", [{"question_id": 0, "text": "A Dog, maybe"}]), test, tmp_path / "vizwiz")
    assert upload and read_json(upload) == [{"image": "a.jpg", "answer": "dog maybe"}]


def test_average_precision_takes_equal_scores_as_one_step() -> None:
    assert average_precision([True, False, True, False], [1, 1, 0, 0]) == pytest.approx(0.5 * 0.5 + 0.5 * 0.5)
    assert average_precision([True, False], [1.0, 0.0]) == 1.0


VIZWIZ = {
    "every prediction 'Unanswerable'": lambda answers: "Unanswerable",
    "answers[0]": lambda answers: answers[0],
    "answers[1].upper()+'.'": lambda answers: f"{answers[1].upper()}.",
    "first most common raw answer": lambda answers: Counter(answers).most_common(1)[0][0],
}


@pytest.mark.parametrize("rule", VIZWIZ)
def test_vizwiz_real_truth(real, write, rule: str) -> None:
    path = real("round2/vizwiz_val2018_0-1599_truth.json.gz")
    said = [
        {"image": one["image"], "answer": VIZWIZ[rule]([answer["answer"] for answer in one["answers"]])}
        for one in read_json(path)
    ]
    answers, expected = write("said.json", said), read_json(real("round2/expected.json"))["vizwiz_val2018"][rule]
    official = find("vizwiz").score(answers, Files(None, path))
    assert official.headline == pytest.approx(expected["official"], abs=0.0051)  # printed with two digits
    assert {kind: official.metrics[kind] for kind in expected["per_type"]} == pytest.approx(
        expected["per_type"], abs=0.0051
    )
    both = find("vizwiz").score(answers, Files(None, path), mode="both_normalised")
    assert both.headline == pytest.approx(expected["both_normalised"], abs=1e-4)


def test_vizwiz_submission(real, write, tmp_path: Path) -> None:
    rows = read_json(real("round2/vizwiz_test_0-3999_raw_and_submission_13b.json.gz"))
    asked = [{"question_id": number, "image": image, "text": "?"} for number, image, _, _ in rows]
    answers = write("answers.jsonl", [{"question_id": number, "text": text} for number, _, text, _ in rows])
    written = find("vizwiz").submit(answers, Files(write("asked.jsonl", asked)), tmp_path / "out")
    assert written and [row["answer"] for row in read_json(written)] == [row[3] for row in rows]


def test_seed_bench(write) -> None:
    rows = [
        {"question_id": "1", "answer": "A", "question_type_id": 1, "data_type": "image"},
        {"question_id": "49914", "answer": "B", "question_type_id": 3, "data_type": "image"},
        {"question_id": "49914", "answer": "C", "question_type_id": 3, "data_type": "image"},
        {"question_id": "v7", "answer": "D", "question_type_id": 10, "data_type": "video"},
    ]
    truth = write(
        "SEED-Bench.json", {"questions": rows, "question_type": {"Scene Understanding": 1, "Instance Attributes": 3}}
    )
    said = [
        {"question_id": 1, "text": "a."},
        {"question_id": 49914, "text": "B"},
        {"question_id": 49914, "text": "C"},
        {"question_id": "v7", "text": "D"},
    ]
    task, answers = find("seed_bench"), write("answers.jsonl", said)
    score = task.score(answers, Files(None, truth))
    assert (score.metrics["correct"], score.n) == (1, 3)  # the last answer under 49914 counts for both rows
    assert score.metrics["Scene Understanding"] == 0.0 and score.metrics["Instance Attributes"] == 50.0
    assert task.score(answers, Files(None, truth), read="first_letter").metrics["correct"] == 2
    with pytest.raises(EvaluationError, match="duplicate"):
        task.score(write("twice.jsonl", [said[0], said[0]]), Files(None, truth))
    with pytest.raises(EvaluationError, match="duplicate"):
        task.score(answers, Files(None, write("twice.json", {"questions": [rows[0], rows[0]]})))


def test_seed_bench_published_answers(real) -> None:
    files = Files(None, real("round2/seed_image_truth.json.gz"))
    score = find("seed_bench").score(real("round2/seed_answers_llava-v1.5-13b.jsonl.gz"), files)
    assert [score.metrics["correct"], score.n] == read_json(real("round2/expected.json"))["seed_image_llava-v1.5-13b"]


def test_mmbench_cn(write) -> None:
    header = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit"
    rows = [
        f"{index}\t这是什么？\tnan\t猫\t狗\t{answer}\tx\t{'A' * 80}\ts\tl\t\tdev"
        for index, answer in ((3, "A"), (1000003, "B"))
    ]
    table = write("mmbench_dev_cn_20231003.tsv", "\n".join([header, *rows]) + "\n")
    task, files = find("mmbench_cn"), Files(table, table)
    asked = task.questions(files)[0]
    assert asked.text == "这是什么？\nA. 猫\nB. 狗\n请直接回答选项字母。" and asked.prompt == "这是什么？\nA. 猫\nB. 狗"
    said = [
        {"question_id": 3, "prompt": asked.prompt, "text": "A"},
        {"question_id": 1000003, "prompt": "", "text": "狗"},
    ]
    assert task.score(write("answers.jsonl", said), files).headline == 100.0


def mmmu_rows() -> list[dict]:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(picture, "PNG")
    image = {"bytes": picture.getvalue(), "path": "1.png"}
    rows = [
        ("validation_Art_1", "['cat', 'dog']", "B"),
        ("validation_Art_2", "['one', 'two', 'three', 'four', 'five']", "E"),
    ]
    return [
        *(
            {
                "id": key,
                "question": "What is <image 1>?",
                "options": options,
                "answer": answer,
                "question_type": "multiple-choice",
                "image_1": image,
            }
            for key, options, answer in rows
        ),
        {
            "id": "validation_Math_Two_7",
            "question": "How many?",
            "options": "[]",
            "answer": "['24/7', '3.429']",
            "question_type": "open",
            "image_1": image,
        },
    ]


def test_mmmu_from_parquet(tmp_path: Path, write) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = mmmu_rows()
    for subject, chosen in (("Art", rows[:2]), ("Math", rows[2:])):
        (tmp_path / "MMMU" / subject).mkdir(parents=True)
        parquet.write_table(
            pyarrow.Table.from_pylist(chosen), tmp_path / "MMMU" / subject / "validation-00000-of-00001.parquet"
        )
    task = find("mmmu")
    files = task.files(tmp_path)
    asked = task.questions(files)
    assert (
        asked[0].text
        == "What is <image 1>?\n(A) cat\n(B) dog\n\nAnswer with the option's letter from the given choices directly."
    )
    assert asked[2].text == "How many?\nAnswer the question using a single word or phrase."
    assert base64.b64decode(asked[0].embedded) == rows[0]["image_1"]["bytes"]
    said = [
        {"question_id": one.id, "prompt": one.prompt, "text": text}
        for one, text in zip(asked, ("(B)", "none of them", "so it is 3.43"))
    ]
    answers = write("answers.jsonl", said)
    score = task.score(answers, files)
    assert (score.metrics["correct"], score.metrics["unread"], score.n) == (2, 1, 3)
    assert score.metrics["subject"] == {"Art": 50.0, "Math_Two": 100.0}
    assert task.score(answers, files, fallback="official").metrics["unread"] == 1
    (tmp_path / "MMMU" / "Art" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(EvaluationError, match="validation-00000-of-00001.parquet: cannot be read"):
        task.questions(files)


def test_mmmu_published_outputs(real) -> None:
    expected, task = read_json(real("round2/expected.json")), find("mmmu")
    outputs = real("round2/mmmu_val_outputs_llava1.5_13b.json.gz")
    official = task.score(outputs, Files(), fallback="official")
    assert [official.metrics["correct"], official.n] == expected["mmmu_llava1.5_13b"]["official_seed42"]
    assert official.metrics["unread"] == expected["mmmu_llava1.5_13b"]["random_fallbacks"]
    for kind in ("discipline", "subject"):
        ratios = {name: 100 * right / n for name, (right, n) in expected["mmmu_llava1.5_13b"][kind].items()}
        assert official.metrics[kind] == pytest.approx(ratios)
    wrong = task.score(outputs, Files())
    assert [wrong.metrics["correct"], wrong.n] == expected["mmmu_llava1.5_13b"]["fallback_wrong"]
    truth = Files(None, real("round2/mmmu_answer_dict_val.json.gz"))
    for suffix in ("", "_second"):
        found = task.score(real(f"round2/mmmu_val_total_llava1.5_13b{suffix}.json.gz"), truth)
        assert [found.metrics["correct"], found.n] == expected[f"mmmu_eval_only_total_llava1.5_13b{suffix}"]


def test_mmmu_examples_of_reading(real) -> None:
    cases = read_json(real("round2/parse_cases.json"))
    choices = cases["mmmu_multiple_choice"]
    for case in choices["cases"]:
        assert read_choice(case["response"], choices["index2ans"]) == case["official"], case
    for case in cases["mmmu_open"]:
        said, gold = as_numbers_and_texts(case["response"]), case["gold"]
        assert sorted(map(str, said)) == sorted(case["parsed"]), case
        assert is_open_answer_right(said, gold if isinstance(gold, list) else [gold]) == case["correct"], case


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B or A", "A"),
        ("(A) or (B)", "B"),
        ("B)", None),
        ("D\n", None),
        ("it is clearly not a dog but the cat", "A"),
        ("cat", None),
    ],
)
def test_mmmu_choice(text: str, letter: str | None) -> None:
    assert read_choice(text, {"A": "cat", "B": "dog"}) == letter


def test_all_takes_what_is_there(write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from llava_prumerge.evaluation.benchmark import choose

    write("data/gqa/llava_gqa_testdev_balanced.jsonl", [{"question_id": "1", "image": "1.jpg", "text": "?"}])
    with caplog.at_level("INFO", logger="eval"):
        assert [task.name for task in choose("all", tmp_path / "data")] == ["gqa"]
    assert "pope" in caplog.text
    with pytest.raises(EvaluationError, match="questions of no benchmark"):
        choose("all", tmp_path)


def test_files_of_the_wrong_form(write) -> None:
    answers = write("a.jsonl", [{"question_id": "1", "text": "x"}])
    for task, content in (
        ("gqa", [1]),
        ("gqa", {"1": 3}),
        ("mmvet", [1]),
        ("seed_bench", {"questions": 3}),
        ("vizwiz", ["x"]),
    ):
        path = write("truth.json", content)
        with pytest.raises(EvaluationError, match=r"truth\.json|judge"):
            find(task).score(answers, Files(None, path))
    assert json.loads(answers.read_text())["text"] == "x"
