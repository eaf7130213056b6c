"""MSVD-QA, MSRVTT-QA, TGIF-QA and ActivityNet-QA: official files and rules, with a judge and without."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from fake_endpoint import running

from llava_prumerge.evaluation.benchmark import Files, find
from llava_prumerge.evaluation.records import EvaluationError, read_json, read_records
from llava_prumerge.evaluation.video_qa import Verdict, VideoQa, read_verdict

ASKED = [("q1", "vid1", "what is cut?", "paper"), ("q2", "vid2", "who runs?", "man"), ("q3", "vid2", "how many?", "2")]
SAID = ["Paper.", "A man", "dogs"]
TASKS = ("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa")


@pytest.fixture
def asked(tmp_path: Path):
    """A function: task -> the files of three questions in its layout."""

    def make(task: str, kinds: list[int] | None = None) -> Files:
        root = tmp_path / find(task).folder
        (root / "videos").mkdir(parents=True)
        questions = [{"video_name": name, "question_id": key, "question": text} for key, name, text, _ in ASKED]
        truths = [{"question_id": key, "answer": answer} for key, _, _, answer in reversed(ASKED)]
        for record, kind in zip(truths, kinds or []):
            record["type"] = kind
        (root / "test_q.json").write_text(json.dumps(questions))
        (root / "test_a.json").write_text(json.dumps(truths))
        return find(task).files(tmp_path)

    return make


@pytest.fixture
def said(write):
    """A file of the three answers, in another order than the questions."""
    answers = [{"question_id": key, "text": text} for (key, *_), text in zip(ASKED, SAID)]
    return write("answers.jsonl", answers[1:] + answers[:1])


@pytest.mark.parametrize("task", TASKS)
def test_strings_are_compared_without_a_judge(task, asked, said, tmp_path) -> None:
    """Truths stand in another order than questions and answers: they are joined by id."""
    files = asked(task, [0, 3, 3])
    score = find(task).score(said, files)
    assert (score.metrics["exact_match"], score.n) == (0.0, 3)
    assert score.headline == score.metrics["match"] == pytest.approx(200 / 3)  # case, article and full stop forgiven
    named = {"3": "yes/no", "0": "motion"} if task == "activitynet_qa" else {"3": "3", "0": "0"}
    assert score.metrics[f"match, {named['3']}"] == 100.0 and score.metrics[f"match, {named['0']}"] == 0.0
    assert ("exact_match, free" in score.metrics) == (task == "activitynet_qa")
    upload = find(task).submit(said, files, tmp_path / "upload")
    assert upload and {"id": "q3", "question": "how many?", "answer": "2", "pred": "dogs"} in read_records(upload)
    assert find(task).score(upload, files).headline == score.headline  # the released scripts' lines are read as well


@pytest.mark.parametrize("task", TASKS)
def test_videos_are_found_whatever_their_ending(task, asked, tmp_path) -> None:
    files = asked(task)
    prefix = find(task).prefix
    (files.images / f"{prefix}vid1.avi").touch()
    (files.images / f"{prefix}vid2").mkdir()
    assert [question.video for question in find(task).questions(files)] == [
        f"{prefix}vid1.avi",
        f"{prefix}vid2",
        f"{prefix}vid2",
    ]
    assert all(question.has_image and question.image is None for question in find(task).questions(files))


def reply(body: dict) -> str:
    text = body["messages"][1]["content"]
    if "Paper." in text:
        return "Sure: {'pred': 'yes', 'score': 4.8}"
    if "dogs" in text:
        return "I cannot say."
    return '{"pred": "No", "score": 1}'


def test_a_judge_grades_and_strings_stand_beside_it(asked, said) -> None:
    """4.8 counts as 4; a reply that cannot be read is asked five times and counts as wrong; nothing is asked twice."""
    files, task = asked("msvd_qa"), find("msvd_qa")
    with running(reply) as fake:
        score = task.score(said, files, judge=fake.url)
        assert len(fake.requests) == 2 + 5
        again = task.score(said, files, judge=fake.url)
        assert len(fake.requests) == 7
    assert score.metrics["accuracy"] == pytest.approx(100 / 3) and score.metrics["score"] == pytest.approx(5 / 3)
    assert (score.metrics["yes"], score.metrics["no"], score.metrics["unread"]) == (1, 2, 1)
    assert score.metrics["match"] == pytest.approx(200 / 3)
    assert again.metrics["judge"]["versions"] == ["fake-judge-1"] and again.headline == score.headline


def test_the_released_result_file_is_read(asked, write) -> None:
    files, task = asked("tgif_qa"), find("tgif_qa")
    pairs = {
        key: [{"pred": verdict, "score": grade}, {"q": text, "a": answer, "pred": "x"}]
        for (key, _, text, answer), (verdict, grade) in zip(ASKED, [("yes", 5), ("no", 2), ("Yes", 4.8)])
    }
    score = task.score(write("results.json", pairs), files)
    assert (score.metrics["accuracy"], score.metrics["score"]) == (pytest.approx(200 / 3), pytest.approx(11 / 3))
    del pairs["q2"]
    with pytest.raises(EvaluationError, match="q2"):
        task.score(write("short.json", pairs), files)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("{'pred': 'yes', 'score': 4}", Verdict(True, 4)),
        ('```json\n{"pred": "no", "score": 0}\n```', Verdict(False, 0)),
        ("{'pred': 'Yes.', 'score': '3'}", Verdict(True, 3)),
        ("{'pred': 'yes', 'score': 9}", None),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'score': 3}", None),
        ("{'pred': 'yes', 'score': __import__('os')}", None),
        ("yes, 4", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, verdict: Verdict | None) -> None:
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda q, a: q.append(q[0]), "duplicate"),
        (lambda q, a: a.pop(), "missing|no truth|q1"),
        (lambda q, a: q[0].update(video_name="../../etc/passwd"), "no name within the folder"),
        (lambda q, a: q[0].update(video_name=7), "video_name"),
        (lambda q, a: a[0].update(answer=["x"]), "the answer to"),
    ],
)
def test_bad_files_are_named(change, told, asked, said) -> None:
    files, task = asked("msrvtt_qa"), find("msrvtt_qa")
    questions, truths = (json.loads(path.read_text()) for path in (files.questions, files.annotations))
    change(questions, truths)
    files.questions.write_text(json.dumps(questions))
    files.annotations.write_text(json.dumps(truths))
    with pytest.raises(EvaluationError, match=told):
        task.questions(files)
        task.score(said, files)


def test_activitynets_own_example(real, write) -> None:
    """Half of the example predictions that come with ActivityNet-QA, by its own rule: equal strings."""
    with gzip.open(real("round2/activitynetqa_val_example_first_half.json.gz"), "rt") as file:
        rows = json.load(file)
    expected = read_json(real("round2/expected.json"))["activitynetqa_first_half"]
    questions = write("q.json", [{"video_name": "v", "question_id": row[0], "question": "?"} for row in rows])
    truths = write("a.json", [{"question_id": key, "type": kind, "answer": truth} for key, kind, truth, _ in rows])
    answers = write("said.jsonl", [{"id": row[0], "pred": row[3]} for row in rows])
    score = find("activitynet_qa").score(answers, Files(questions, truths))
    assert [score.metrics["exact_correct"], score.n] == expected["all"]
    right, count = expected["free_types_3_to_8"]
    assert score.metrics["exact_match, free"] == pytest.approx(100 * right / count)


def test_every_video_benchmark_has_a_script() -> None:
    scripts = Path(__file__).resolve().parents[2] / "scripts" / "eval"
    assert all((scripts / f"{task}.sh").is_file() and isinstance(find(task), VideoQa) for task in TASKS)
