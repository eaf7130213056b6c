"""Answer files survive kills, changes of the number of ranks, and mistakes about what they belong to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_prumerge.evaluation.answers import (
    AnswerWriter,
    answer_record,
    claim,
    digest_questions,
    header_path,
    merge,
    part_path,
    pending,
    read_header,
)
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.records import EvaluationError

QUESTIONS = [Question(number // 2, f"prompt {number}", "text") for number in range(8)]  # ids are shared by two each


def answers_to(questions: list[Question], text: str = "yes") -> list[dict]:
    return [answer_record(question, text, "model", {}) for question in questions]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "pope.jsonl"


def write_answers(path: Path, questions: list[Question], rank: int = 0, world: int = 1, text: str = "yes") -> None:
    with AnswerWriter(path, rank, world) as writer:
        writer.append(answers_to(questions, text))


def test_a_cut_off_line_is_answered_again(path: Path) -> None:
    write_answers(path, QUESTIONS[:3])
    path.write_bytes(path.read_bytes()[:-10])
    assert pending(path, QUESTIONS) == QUESTIONS[2:]
    write_answers(path, QUESTIONS[2:])
    assert [record["prompt"] for record in merge(path, QUESTIONS)] == [question.prompt for question in QUESTIONS]
    assert len(path.read_text().splitlines()) == 8


def test_a_broken_line_inside_a_file_is_an_error(path: Path) -> None:
    write_answers(path, QUESTIONS[:3])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:-10] + "\n" + lines[2])
    with pytest.raises(EvaluationError, match="line 2: not a JSON object"):
        pending(path, QUESTIONS)


KILLED = """
import sys, time
from pathlib import Path
from llava_prumerge.evaluation.answers import AnswerWriter, answer_record, pending
from llava_prumerge.evaluation.benchmark import Question
questions = [Question(n, f"prompt {n}", "text") for n in range(400)]
path = Path(sys.argv[1])
with AnswerWriter(path) as writer:
    for question in pending(path, questions):
        writer.append([answer_record(question, "x" * 20000, "model", {})])
        time.sleep(float(sys.argv[2]))
"""


def test_kill_loses_and_doubles_nothing(path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), "0.002"])
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 200_000:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    questions = [Question(number, f"prompt {number}", "text") for number in range(400)]
    before = len(pending(path, questions))
    assert 0 < before < 400
    subprocess.run([sys.executable, "-c", KILLED, str(path), "0"], check=True)
    assert [record["question_id"] for record in merge(path, questions)] == list(range(400))


def test_two_processes_cannot_write_one_file(path: Path) -> None:
    with AnswerWriter(path), pytest.raises(EvaluationError, match="another process is writing"), AnswerWriter(path):
        pass


def test_parts_of_any_number_of_ranks_become_one_file(path: Path) -> None:
    write_answers(path, QUESTIONS[5:6])  # alone, then with three ranks, then with two
    write_answers(path, QUESTIONS[0:2], rank=0, world=3)
    write_answers(path, QUESTIONS[2:3], rank=2, world=3)
    assert pending(path, QUESTIONS) == [QUESTIONS[3], QUESTIONS[4], *QUESTIONS[6:]]
    write_answers(path, [QUESTIONS[6], QUESTIONS[3]], rank=0, world=2)
    with pytest.raises(EvaluationError, match=r"missing 2 \(\('2', 'prompt 4'\), \('3', 'prompt 7'\)\)"):
        merge(path, QUESTIONS)
    assert part_path(path, 0, 2).exists()  # a refused merge destroys nothing
    write_answers(path, [QUESTIONS[7], QUESTIONS[4]], rank=1, world=2)
    assert [record["prompt"] for record in merge(path, QUESTIONS)] == [question.prompt for question in QUESTIONS]
    assert [file.name for file in path.parent.iterdir()] == ["pope.jsonl"]


def test_a_merge_that_was_killed_before_its_parts_were_deleted(path: Path) -> None:
    write_answers(path, QUESTIONS[:4], rank=0, world=2)
    write_answers(path, QUESTIONS)
    assert len(merge(path, QUESTIONS)) == 8 and pending(path, QUESTIONS) == []


def test_two_different_answers_to_one_question_are_refused(path: Path) -> None:
    write_answers(path, QUESTIONS[:2], rank=0, world=2)
    write_answers(path, QUESTIONS[1:2], rank=1, world=2, text="no")
    with pytest.raises(EvaluationError, match="answered twice and differently"):
        pending(path, QUESTIONS)


def test_answers_to_other_questions_are_refused(path: Path) -> None:
    write_answers(path, [Question(99, "other", "text")])
    with pytest.raises(EvaluationError, match="which are not asked"):
        pending(path, QUESTIONS)
    with pytest.raises(EvaluationError, match="more than once"):
        pending(path.with_name("new.jsonl"), [QUESTIONS[0], QUESTIONS[0]])


def test_a_file_belongs_to_what_made_it(path: Path) -> None:
    header = {"model": "abc", "reduction": {"vision": {"name": "prumerge"}}, "template": "vicuna_v1", "limit": None}
    claim(path, header | {"model": "a run that failed before its first answer"}, {})
    claim(path, header, {"model": "somewhere"})
    write_answers(path, QUESTIONS[:1])
    claim(path, header, {"model": "elsewhere"})  # the same model in another folder
    assert read_header(path) == header
    with pytest.raises(EvaluationError, match=r"model is 'abc', not 'xyz'; template is 'vicuna_v1', not 'plain'"):
        claim(path, header | {"model": "xyz", "template": "plain"}, {})
    with pytest.raises(EvaluationError, match="reduction is .*prumerge.* not {}"):
        claim(path, header | {"reduction": {}}, {})
    header_path(path).unlink()
    with pytest.raises(EvaluationError, match="has answers but no pope.jsonl.meta.json"):
        claim(path, header, {})
    header_path(path).write_text("[]")
    with pytest.raises(EvaluationError, match="not a header"):
        claim(path, header, {})


def test_the_question_hash_sees_every_part_of_a_question() -> None:
    base = Question(1, "p", "t", "i")
    others = [Question(2, "p", "t", "i"), Question(1, "q", "t", "i"), Question(1, "p", "u", "i"), Question(1, "p", "t")]
    digests = {digest_questions([question]) for question in [base, *others]}
    assert len(digests) == 5 and digest_questions([base, *others]) != digest_questions([*others, base])


def test_records_are_llavas_and_repeatable() -> None:
    question = Question(7, "prompt", "text", extra={"round_id": 0})
    record = answer_record(question, "yes", "llava", {"kept": 3})
    assert list(record) == ["question_id", "prompt", "text", "round_id", "answer_id", "model_id", "metadata"]
    assert record == answer_record(question, "yes", "llava", {"kept": 3}) and json.dumps(record)
    assert record["answer_id"] != answer_record(question, "yes", "other", {})["answer_id"]
