"""Answer files: JSON lines written as they come, resumed after a kill, merged over ranks, and bound to what made them.

`<answers>.meta.json` beside a file says which model, method, prompt, question file and generation settings it belongs
to. Going on with a file under any other setting is an error that names the field, and `accept_changes=FIELD` goes on all
the same. One process writes `<answers>`
itself; of several, rank r writes `<answers>.part<r>of<n>`, and the parts become `<answers>` once every question has its
answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.records import EvaluationError, Record, name_keys, require_same_keys, shorten
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.json_lines import append_json_lines, write_json_lines
from llava_prumerge.ground.locks import hold
from llava_prumerge.ground.reading import read_json_object

logger = logging.getLogger("eval")

NO_HEADER = "header"
"""What `accept_changes` takes for a file whose header is gone."""

QuestionKey = tuple[str, str]


def header_path(answers: Path) -> Path:
    """The sidecar of an answer file."""
    return answers.with_name(f"{answers.name}.meta.json")


def part_path(answers: Path, rank: int, world: int) -> Path:
    """The file a rank writes."""
    return answers if world == 1 else answers.with_name(f"{answers.name}.part{rank}of{world}")


def part_paths(answers: Path) -> list[Path]:
    """All files that hold answers, whatever number of ranks wrote them."""
    return [path for path in [answers, *sorted(answers.parent.glob(f"{answers.name}.part*of*"))] if path.is_file()]


def record_key(record: Record, path: Path) -> QuestionKey:
    """The question that a record answers; matches `Question.key`."""
    if "question_id" not in record or "prompt" not in record:
        raise EvaluationError(f"{path}: {shorten(record)} lacks question_id or prompt")
    return str(record["question_id"]), record["prompt"]


def read_part(path: Path) -> list[Record]:
    """The whole lines of an answer file; others, which a kill or a full disk left, are passed over and asked again."""
    *lines, _ = path.read_bytes().split(b"\n")
    records, torn = [], 0
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            torn += 1
    if torn:
        logger.warning("%s: %d line%s no answers, passed over", path, torn, " that is" if torn == 1 else "s that are")
    return records


def gather(answers: Path) -> dict[QuestionKey, Record]:
    """All answers of a file and its parts; a line may stand in two of them, but no question has two answers."""
    found: dict[QuestionKey, Record] = {}
    for path in part_paths(answers):
        for record in read_part(path):
            key = record_key(record, path)
            if found.setdefault(key, record) != record:
                raise EvaluationError(f"{path}: question {shorten(key)} is answered twice and differently")
    return found


def claim(answers: Path, header: Mapping[str, Any], notes: Mapping[str, Any], accepted: Sequence[str] = ()) -> None:
    """Bind an answer file to what makes it, or check that it is bound to just that.

    A field that the file's header does not have, as it is of an earlier version, is taken over.

    Args:
        answers: the answer file, which need not exist yet.
        header: everything that must be equal for the file to be continued.
        notes: what is worth keeping but may differ, such as the model's path.
        accepted: fields that may differ this time; the new values are the file's own from then on.

    Raises:
        EvaluationError: naming each field that differs.
    """
    path = header_path(answers)
    header = json.loads(json.dumps(header))
    unknown = sorted(set(accepted) - {*header, NO_HEADER})
    if unknown:
        raise EvaluationError(f"accept_changes={','.join(unknown)}: must be any of {', '.join([*header, NO_HEADER])}")
    answered = [part for part in part_paths(answers) if read_part(part)]
    found, fault = find_header(answers)
    fields = [name for name in {**header, **found} if header.get(name) != found.get(name)]
    if not fields:
        return
    if answered and not found and NO_HEADER not in accepted:
        raise EvaluationError(
            f"{answered[0]} has answers but {path.name} does not say what made them ({fault}): move it away, or go on all the "
            f"same with accept_changes={NO_HEADER}"
        )
    refused = [name for name in fields if name in found and name not in accepted]
    if answered and refused:
        told = "; ".join(f"{name} is {shorten(found.get(name))}, not {shorten(header.get(name))}" for name in refused)
        keys = ",".join(dict.fromkeys([*accepted, *refused]))
        raise EvaluationError(
            f"{answers} belongs to another run: {told}. Choose another --out or label=, delete it to start again, or go on "
            f"all the same with accept_changes={keys}"
        )
    changed = [name for name in fields if name in found] if answered else []
    if changed:
        logger.warning("%s: accepted changes of %s", answers, ", ".join(changed))
        notes = {**notes, "accepted": [*read_notes(answers).get("accepted", []), *changed]}
    # A header without answers, from a run that failed before its first batch, binds nothing.
    write_json(path, {"header": header, "notes": notes})


def find_header(answers: Path) -> tuple[dict[str, Any], str]:
    """What an answer file belongs to, or {} and why that cannot be told."""
    if not header_path(answers).exists():
        return {}, "it is missing"
    try:
        return read_header(answers), ""
    except EvaluationError as error:
        return {}, str(error)


def read_sidecar(answers: Path) -> dict[str, Any]:
    """Header and notes of an answer file."""
    try:
        content = read_json_object(header_path(answers))
        return {"header": dict(content["header"]), "notes": dict(content["notes"])}
    except FileError as error:
        raise EvaluationError(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{header_path(answers)}: not a header written by eval") from error


def read_header(answers: Path) -> dict[str, Any]:
    """What an answer file belongs to."""
    return read_sidecar(answers)["header"]


def read_notes(answers: Path) -> dict[str, Any]:
    """What is noted beside an answer file."""
    return read_sidecar(answers)["notes"]


def add_seconds(answers: Path, seconds: float) -> None:
    """Note for how long an answer file has been worked on, over all runs that were not killed."""
    content = read_sidecar(answers)
    content["notes"]["seconds"] = round(content["notes"].get("seconds", 0.0) + seconds, 1)
    write_json(header_path(answers), content)


class AnswerWriter:
    """Appends answers to this rank's file; a line is on disk before the next batch starts, whole or not at all.

    Nobody else writes to the file meanwhile, nor, of several ranks, to the one that their parts become.

    Args:
        answers: the answer file.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, answers: Path, rank: int = 0, world: int = 1) -> None:
        self.path = part_path(answers, rank, world)
        self.locked = [self.path, *([answers] if rank == 0 and world > 1 else [])]
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> AnswerWriter:
        with contextlib.ExitStack() as stack:
            for path in self.locked:
                if (left := stack.enter_context(hold(path))) is not None:
                    logger.info(left)
            append_json_lines(self.path, [])  # takes away a line cut off by a kill
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def append(self, records: Iterable[Record]) -> None:
        """Write answers and wait until they are on disk.

        Raises:
            FileError: they cannot be written; the file is as before.
        """
        if self._stack is None:
            raise RuntimeError("AnswerWriter is used outside its `with` block")
        append_json_lines(self.path, records, sync=True)


def merge(answers: Path, questions: Sequence[Question]) -> list[Record]:
    """Make one file of all parts, in the order of the questions, and return its records.

    Raises:
        EvaluationError: a question has no answer, or an answer no question; the parts stay as they are.
    """
    found = gather(answers)
    require_same_keys([question.key for question in questions], found, answers, "the question file")
    records = [found[question.key] for question in questions]
    write_json_lines(answers, records)
    for path in part_paths(answers):
        if path != answers:
            path.unlink()
    return records


def digest_questions(questions: Iterable[Question]) -> str:
    """A hash of what is asked: ids, texts and names of images or videos (or, where the file carries them, the images)."""
    digest = hashlib.sha256()
    for question in questions:
        parts = (str(question.id), question.prompt, question.text, question.image or "", question.embedded or "")
        shown = parts if question.video is None else (*parts, question.video)
        digest.update(json.dumps(shown).encode())
    return digest.hexdigest()


def answer_record(question: Question, text: str, model_id: str, metadata: Mapping[str, Any]) -> Record:
    """An answer in LLaVA's format. The id follows from question and model, so that a repeated run repeats the file."""
    digest = hashlib.sha256(json.dumps([model_id, *question.key]).encode()).hexdigest()
    return {
        "question_id": question.id,
        "prompt": question.prompt,
        "text": text,
        **question.extra,
        "answer_id": digest[:22],
        "model_id": model_id,
        "metadata": dict(metadata),
    }


def pending(answers: Path, questions: Sequence[Question]) -> list[Question]:
    """The questions that have no answer yet.

    Raises:
        EvaluationError: there are answers to questions that are not asked, or questions that cannot be told apart.
    """
    keys = [question.key for question in questions]
    if len(set(keys)) < len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        raise EvaluationError(f"the question file asks {name_keys(twice)} more than once")
    done, asked = gather(answers), set(keys)
    if strange := [key for key in done if key not in asked]:
        raise EvaluationError(f"{answers}: answers to {name_keys(strange)}, which are not asked")
    return [question for question in questions if question.key not in done]
