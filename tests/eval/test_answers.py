"""Answer files survive kills, changes of the number of ranks, and mistakes about what they belong to."""

from __future__ import annotations

import errno
import fcntl
import json
import os
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
    read_notes,
)
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.locks import LockedError

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
    with (
        AnswerWriter(path),
        pytest.raises(LockedError, match="pop.*: this process is at work there already"),
        AnswerWriter(path),
    ):
        pass
    with AnswerWriter(path, 0, 2), AnswerWriter(path, 1, 2):
        with pytest.raises(LockedError), AnswerWriter(path):
            pass
        with pytest.raises(LockedError), AnswerWriter(path, 1, 2):
            pass


def test_a_file_system_without_locks_is_one_for_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `LD_PRELOAD` of a library whose flock and fcntl refuse."""

    def refuse(*words: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    write_answers(path, QUESTIONS[:3])
    with AnswerWriter(path), pytest.raises(LockedError), AnswerWriter(path):
        pass
    assert pending(path, QUESTIONS) == QUESTIONS[3:]
    assert [file.name for file in path.parent.iterdir()] == ["pope.jsonl"]


@pytest.mark.parametrize("torn", [b"{", b"\xff\xfe", b"[1]", b"7", b"", b"[" * 5000])
def test_a_torn_line_is_passed_over_and_asked_again(path: Path, caplog: pytest.LogCaptureFixture, torn: bytes) -> None:
    write_answers(path, QUESTIONS[:3])
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], torn, lines[2], b""]))
    assert pending(path, QUESTIONS) == [QUESTIONS[1], *QUESTIONS[3:]]
    assert "1 line that is no answers, passed over" in caplog.text
    write_answers(path, [QUESTIONS[1], *QUESTIONS[3:]])
    assert len(merge(path, QUESTIONS)) == len(QUESTIONS) == len(path.read_bytes().splitlines())


def test_a_full_disk_leaves_whole_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(path, QUESTIONS[:2])
    before = path.read_bytes()

    def refuse(*words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        with (
            pytest.raises(FileError, match="pope.jsonl: cannot be written: the disk is full"),
            AnswerWriter(path) as writer,
        ):
            writer.append([answer_record(QUESTIONS[2], "yes", "m", {})])
    assert path.read_bytes() == before


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
    with pytest.raises(
        EvaluationError,
        match="has answers but pope.jsonl.meta.json does not say .* .it is missing.*accept_changes=header",
    ):
        claim(path, header, {})
    header_path(path).write_text("[]")
    with pytest.raises(EvaluationError, match="must hold a JSON object"):
        claim(path, header, {})
    claim(path, header, {}, ["header"])
    assert read_header(path) == header


def test_a_change_of_what_made_a_file_can_be_accepted_by_name(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = {"model": "abc", "template": "vicuna_v1"}
    claim(path, header, {})
    write_answers(path, QUESTIONS[:1])
    other = {"model": "xyz", "template": "plain"}
    with pytest.raises(EvaluationError, match=r"template is .*accept_changes=model,template$"):
        claim(path, other, {}, ["model"])
    with pytest.raises(EvaluationError, match="accept_changes=weights: must be any of model, template, header"):
        claim(path, other, {}, ["weights"])
    claim(path, other, {}, ["model", "template"])
    assert read_header(path) == other and read_notes(path)["accepted"] == ["model", "template"]
    assert "accepted changes of model, template" in caplog.text
    claim(path, other | {"image_files": "0"}, {})  # a field that an earlier version did not have
    assert read_header(path)["image_files"] == "0"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"header": 3, "notes": {}}'])
def test_a_torn_header_without_answers_binds_nothing(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header_path(path).write_bytes(content)
    claim(path, {"model": "abc"}, {})
    assert read_header(path) == {"model": "abc"}


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
