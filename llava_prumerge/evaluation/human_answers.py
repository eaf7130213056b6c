"""What several people answered to one question, as VQAv2 and VizWiz keep it, and means of marks by the kind of answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_prumerge.evaluation.records import (
    EvaluationError,
    Record,
    field,
    human_answer,
    list_field,
    objects,
    text_field,
)


@dataclass(frozen=True)
class HumanAnswers:
    """What people answered to one question.

    Attributes:
        answer_type: the kind of answer, such as "yes/no" or "other".
        answers: one for each person.
    """

    answer_type: str
    answers: tuple[str, ...]


def read_human_answers(record: Record, asked: str, path: Path) -> HumanAnswers:
    """The answers of an annotation; `asked` is what a message calls the question.

    Raises:
        EvaluationError: there are none, or they are no answers.
    """
    told = objects(list_field(record, "answers", path), path, "a list of answers")
    answers = tuple(human_answer(field(one, "answer", path), path) for one in told)
    if not answers:
        raise EvaluationError(f"{path}: {asked} has no human answers")
    return HumanAnswers(text_field({"answer_type": "other"} | record, "answer_type", path), answers)


def means_by_type(marks: Sequence[float], answer_types: Sequence[str], first: Sequence[str] = ()) -> dict[str, float]:
    """The mean of all marks in percent, as `overall`, and of each kind of answer; those in `first` come first."""
    means = {"overall": 100 * math.fsum(marks) / len(marks)}
    present = set(answer_types)
    for kind in [*(kind for kind in first if kind in present), *sorted(present.difference(first))]:
        chosen = [mark for mark, own in zip(marks, answer_types, strict=True) if own == kind]
        means[kind] = 100 * math.fsum(chosen) / len(chosen)
    return means
