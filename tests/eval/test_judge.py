"""Judged benchmarks: the official reading and sums, a judge that is asked once, resumed, named, and allowed to fail."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import running

from llava_prumerge.evaluation import judge as judging
from llava_prumerge.evaluation.benchmark import Files, find
from llava_prumerge.evaluation.llava_bench import read_pair, summarise
from llava_prumerge.evaluation.mmvet import make_prompt, read_grade
from llava_prumerge.evaluation.records import EvaluationError, read_json, read_records
from llava_prumerge.evaluation.run import main

GRADES = {"a cat": "1.0", "a dog": "0.3", "nothing": "none", "a fox": "0.3"}


@pytest.fixture
def vet(write) -> tuple[Files, Path]:
    """Three questions of two capabilities, and answers."""
    truth = {
        f"v1_{at}": {
            "imagename": f"{at}.jpg",
            "question": "What is it?",
            "answer": "a cat<AND>a hat",
            "capability": caps,
        }
        for at, caps in enumerate((["rec"], ["rec", "ocr"], ["ocr"]))
    }
    asked = [{"question_id": at, "image": f"{at}.jpg", "text": "What is it?", "category": "conv"} for at in range(3)]
    files = Files(write("asked.jsonl", asked), write("mm-vet.json", truth))
    said = [
        {"question_id": at, "prompt": "What is it?", "text": text}
        for at, text in enumerate(["a cat", "a dog", "nothing"])
    ]
    return files, write("answers.jsonl", said)


def grade(body: dict[str, Any]) -> str:
    """The grade of the answer in the last row of the table."""
    row = next(line for line in reversed(body["messages"][0]["content"].split("\n")) if line.endswith(" | "))
    assert row.startswith("What is it? | a cat <AND> a hat | ")
    return GRADES[row.split(" | ")[2]]


def test_a_judge_grades_each_answer_once(vet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    files, answers = vet
    with running(grade) as endpoint:
        score = find("mmvet").score(answers, files, judge=endpoint.url, judge_model="gpt-x")
        assert score.headline == pytest.approx(100 * (1.0 + 0.3 + 0) / 3)
        assert score.metrics["ocr"] == pytest.approx(15.0) and score.metrics["ocr+rec only"] == pytest.approx(30.0)
        assert score.metrics["judge"]["versions"] == ["fake-judge-1"] and score.metrics["judge"]["model"] == "gpt-x"
        assert len(endpoint.requests) == 2 + 5  # five attempts at the answer that gets no number
        assert [request["temperature"] for request in endpoint.requests[2:]] == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert endpoint.requests[0]["max_tokens"] == 3 and endpoint.keys[0] == "Bearer secret-key"
        again = find("mmvet").score(answers, files, judge=endpoint.url, judge_model="gpt-x")
        assert again.headline == score.headline and len(endpoint.requests) == 7
        find("mmvet").score(answers, files, judge=endpoint.url, judge_model="another")
        assert len(endpoint.requests) == 14
    kept = (answers.parent / "answers.judge.jsonl").read_text()
    assert "secret-key" not in kept and len(kept.splitlines()) == 14


def test_what_was_said_before_a_failure_is_kept(vet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "WAIT", 0.0)
    files, answers = vet
    broken: set[str] = {"a dog"}

    def reply(body: dict[str, Any]) -> str | int:
        busy = any(f"| {text} |" in body["messages"][0]["content"].split("\n")[-1] for text in broken)
        return 503 if busy else grade(body)

    with running(reply) as endpoint:
        with pytest.raises(EvaluationError, match=r"gives no reply \(status 503\); what it has said so far is kept"):
            find("mmvet").score(answers, files, judge=endpoint.url)
        assert len(endpoint.requests) == 1 + judging.TRIES
        broken.clear()
        assert find("mmvet").score(answers, files, judge=endpoint.url).n == 3
        assert len(endpoint.requests) == 1 + judging.TRIES + 1 + 5


@pytest.mark.parametrize(
    ("judge", "said"),
    [("nowhere", "not an address"), ("http://127.0.0.1:1/v1", "gives no reply")],
)
def test_a_judge_that_is_not_there(vet, judge: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "WAIT", 0.0)
    files, answers = vet
    with pytest.raises(EvaluationError, match=said):
        find("mmvet").score(answers, files, judge=judge)


def test_a_reply_without_end_is_not_read_to_its_end(vet) -> None:
    files, answers = vet
    with running(lambda body: b"x" * 65_536) as endpoint:
        with pytest.raises(EvaluationError, match="replies with more than 1,048,576 bytes"):
            find("mmvet").score(answers, files, judge=endpoint.url)
        assert len(endpoint.requests) == 1 and endpoint.sent < 64 << 20


def test_a_reply_that_drips_is_given_up(vet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "WAIT", 0.0)
    monkeypatch.setattr(judging, "LONGEST", -1.0)
    files, answers = vet
    with running(lambda body: b" ") as endpoint:
        with pytest.raises(EvaluationError, match=r"gives no reply \(TimeoutError\)"):
            find("mmvet").score(answers, files, judge=endpoint.url)
        assert len(endpoint.requests) == judging.TRIES


def test_replies_that_a_kill_has_cut_are_asked_again(vet) -> None:
    files, answers = vet
    with running(grade) as endpoint:
        first = find("mmvet").score(answers, files, judge=endpoint.url)
        asked, kept = len(endpoint.requests), answers.parent / "answers.judge.jsonl"
        kept.write_bytes(kept.read_bytes()[:-9])
        assert find("mmvet").score(answers, files, judge=endpoint.url).headline == first.headline
        assert len(endpoint.requests) == asked + 1
        kept.write_bytes(b"{}\n" + kept.read_bytes())
        with pytest.raises(EvaluationError, match="answers.judge.jsonl: not a file of a judge's replies"):
            find("mmvet").score(answers, files, judge=endpoint.url)
        kept.write_bytes(b"{]\n")
        with pytest.raises(EvaluationError, match="answers.judge.jsonl: line 1: not a JSON object"):
            find("mmvet").score(answers, files, judge=endpoint.url)


def test_an_address_with_a_password_is_shown_without(vet) -> None:
    files, answers = vet
    with running(grade) as endpoint:
        score = find("mmvet").score(answers, files, judge=endpoint.url.replace("//", "//me:secret@"))
    assert score.metrics["judge"]["url"] == endpoint.url
    assert "secret" not in (answers.parent / "answers.judge.jsonl").read_text()


def test_without_a_judge_it_is_said_what_is_needed(vet, capsys: pytest.CaptureFixture[str]) -> None:
    files, answers = vet
    words = ["score", "--task", "mmvet", "--answers", str(answers), "--questions", str(files.questions)]
    assert main([*words, "--annotations", str(files.annotations)]) == 2
    assert "judge=URL" in capsys.readouterr().err
    assert not find("mmvet").can_score(files, {}) and find("mmvet").can_score(files, {"judge": "http://x"})


def test_llava_bench_reviews_answers_beside_the_reference(write) -> None:
    asked = [
        {"question_id": at, "image": "001.jpg", "text": f"Why {at}?", "category": kind}
        for at, kind in ((0, "conv"), (1, "detail"))
    ]
    write("data/context.jsonl", [{"id": 0, "image": "001.jpg", "caption": ["A boat.", "A lake."]}])
    reference = [{"question_id": at, "text": f"because {at}"} for at in range(2)]
    folder = write("data/answers_gpt4.jsonl", reference).parent
    files = Files(write("data/questions.jsonl", asked), folder)
    answers = write(
        "answers.jsonl", [{"question_id": at, "prompt": f"Why {at}?", "text": f"answer {at}"} for at in range(2)]
    )

    def reply(body: dict[str, Any]) -> str:
        system, user = (message["content"] for message in body["messages"])
        assert "checking the quality" in system and "[Context]\nA boat.\nA lake.\n" in user
        at = user.index("[Assistant 2]\nanswer ") + len("[Assistant 2]\nanswer ")
        assert f"[Assistant 1]\nbecause {user[at]}\n" in user and body["temperature"] == 0.2
        return "8 4\nfine" if user[at] == "0" else "10 8\nfine"

    with running(reply) as endpoint:
        score = find("llava_bench").score(answers, files, judge=endpoint.url)
    assert score.headline == round(6 / 9 * 100, 1) and score.metrics["conv"] == 50.0 and score.metrics["detail"] == 80.0
    unread = pytest.raises(EvaluationError, match="no two numbers in 3 replies")
    with running(lambda body: "I cannot say") as endpoint, unread:
        find("llava_bench").score(answers, files, judge=endpoint.url)


def test_means_are_rounded_before_the_ratio() -> None:
    pairs = [(8.0, 5.0), (7.0, 5.0), (9.0, 6.0)]
    assert summarise(pairs) == {
        "ratio": round(round(16 / 3, 3) / 8.0 * 100, 1),
        "reference": 80.0,
        "model": 53.3,
        "n": 3,
    }


def test_examples_of_the_judges_reading(real) -> None:
    cases = read_json(real("round2/parse_cases.json"))
    for case in cases["mmvet_scores"]:
        assert read_grade(case["content"]) == case["score"], case
    for case in cases["llavabench_scores"]:
        assert (read_pair(case["review"]) or (-1, -1)) == tuple(case["official"]), case


@pytest.mark.parametrize(
    ("reply", "number"),
    [("0.5", 0.5), ("1.0 because", 1.0), ("1.1", None), ("-0.1", None), (" 0.5", None), ("nan", None), ("5e-1", 0.5)],
)
def test_a_grade_is_the_first_word(reply: str, number: float | None) -> None:
    assert read_grade(reply) == number


def test_the_official_table_spaces_and_and_or() -> None:
    from llava_prumerge.evaluation.mmvet import Item

    row = make_prompt(Item("Q", "a<OR>b<AND>c", ("rec",)), "p").split("\n")[-1]
    assert row == "Q | a <OR> b <AND> c | p | "


@pytest.mark.parametrize("runs", [1, 3])
def test_mmvet_published_grades(real, runs: int) -> None:
    grades = real(f"round2/mmvet_grades_llava-v1.5-13b_gpt-4_{runs}runs.json.gz")
    score = find("mmvet").score(grades, Files(None, real("round2/mmvet_capabilities.json.gz")))
    expected = read_json(real("round2/expected.json"))[f"mmvet_llava-v1.5-13b_gpt-4_{runs}runs"]
    del expected["run_sums"]
    assert [round(run, 1) for run in score.metrics["runs"]] == expected.pop("runs")
    for name, value in expected.items():
        assert round(score.metrics[name], 1) == (value[0] if isinstance(value, list) else value), name


def test_llava_bench_published_reviews(real, tmp_path: Path) -> None:
    expected, ratios = read_json(real("round2/expected.json")), defaultdict(list)
    for number in (1, 2, 3):
        reviews = real(f"round2/llavabench_reviews_llava-v1.5-13b_eval{number}.jsonl.gz")
        found = find("llava_bench").score(reviews, Files()).metrics["reviews"][0]
        assert {name: list(row.values()) for name, row in found.items()} == expected[f"llavabench_13b_eval{number}"]
        ratios["all"].append(found["all"]["ratio"])
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read_records(reviews)))
    score = find("llava_bench").score(tmp_path, Files())
    assert round(score.headline, 1) == expected["llavabench_13b_published"] and score.n == 60
