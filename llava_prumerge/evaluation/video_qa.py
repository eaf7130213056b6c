"""Questions about videos with short free answers, in the files of Video-ChatGPT's zero-shot evaluation.

Published numbers come from a judge model: it compares each answer with the truth and says yes or no and a grade from 0 to 5.
Without a judge answers are compared as strings: as ActivityNet-QA's own evaluator does (`exact_match`), and in VQA's normal form
(`match`), which forgives capitals, articles and full stops. Both stand beside the judge's numbers.

Departures from the released scripts: answers are joined to their truth by id (theirs count within a chunk, so that several
GPUs pair answers with others' truths); a reply that cannot be read is asked again a few times and then counts as wrong,
with grade 0, and is counted (theirs ask for ever). Grades are cut to whole numbers as theirs are. Judges differ by
ten points between versions of one model: the result names the version that answered.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llava_prumerge.evaluation.benchmark import Files, Question
from llava_prumerge.evaluation.judge import Judge
from llava_prumerge.evaluation.judged import JudgedBenchmark
from llava_prumerge.evaluation.normalise import normalise_vqa
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    identifier,
    index_by,
    objects,
    read_json,
    read_one_object,
    read_records,
    require_same_keys,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.records import field as read_field
from llava_prumerge.evaluation.results import Score
from llava_prumerge.ground.json_lines import write_json_lines

ATTEMPTS = 5
TOKENS = 64
BEST = 5
"""The judge's highest grade."""
ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", "")
"""Of a video, tried in this order; the last is a folder of frames."""
SYSTEM = (
    "You judge answers to questions about videos. Compare the predicted answer with the correct answer. They agree when they "
    "mean the same; synonyms and paraphrases are right. Judge the meaning, not the wording."
)
FORM = (
    "Judge this answer to a question about a video.\n\nQuestion: {question}\nCorrect answer: {answer}\n"
    "Predicted answer: {prediction}\n\nSay yes or no, and a whole number from 0 to 5 for how well both agree, 5 being best. "
    "Reply with nothing but a Python dictionary with the keys 'pred' (a string, yes or no) and 'score' (a whole number), such "
    "as {{'pred': 'yes', 'score': 4}}."
)
_DICTIONARY = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Item:
    """A question's truth; `kind` is its type where the file says one."""

    question: str
    answer: str
    kind: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge said: whether the answer is right, and its grade from 0 to 5. `read`: its reply could be read."""

    right: bool
    grade: int
    read: bool = True


def read_verdict(reply: str) -> Verdict | None:
    """The verdict in a judge's reply, a dictionary in Python's or JSON's form; None where there is none."""
    found = _DICTIONARY.search(reply)
    if found is None:
        return None
    for parse in (ast.literal_eval, json.loads):
        try:
            return verdict_of(parse(found[0]))
        except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
            continue
    return None


def verdict_of(values: Mapping[str, Any]) -> Verdict:
    """From a dictionary with pred and score.

    Raises:
        ValueError, TypeError, KeyError: it has no such verdict.
    """
    said, grade = str(values["pred"]).lower(), int(float(values["score"]))  # 4.8 is 4, as in the released script
    if not ("yes" in said or "no" in said) or not 0 <= grade <= BEST:
        raise ValueError(said)
    return Verdict("yes" in said, grade)


class VideoQa(JudgedBenchmark):
    """Accuracy by a judge where one is named, else by the normal form of the answers.

    Subclasses say where their files lie.

    Attributes:
        prefix: of videos' file names.
        kinds: names of the types that the truth numbers.
    """

    headline = "accuracy"
    max_new_tokens = 1024
    answer_field = "pred"
    default_model = "gpt-3.5-turbo-0125"
    prefix: ClassVar[str] = ""
    kinds: ClassVar[Mapping[str, str]] = {}

    def files(self, data: Path) -> Files:
        root = data / self.folder
        truth = root / "test_a.json"
        return Files(root / "test_q.json", truth if truth.is_file() else None, images=root / "videos")

    def can_score(self, files: Files, options: Mapping[str, str]) -> bool:
        """Strings can be compared without a judge."""
        return files.annotations is not None

    def questions(self, files: Files) -> list[Question]:
        path = files.need("questions")
        asked = []
        for key, record in self.read_list(path).items():
            text, name = text_field(record, "question", path), text_field(record, "video_name", path)
            place = f"{path}, question {key}"
            video = self.find_video(name, files.images, place)
            asked.append(Question(record["question_id"], text, text, video=video, place=place))
        return asked

    def find_video(self, name: str, videos: Path | None, place: str) -> str:
        """Path of a video below the folder of videos, whatever its ending; a video that is missing keeps the first.

        Raises:
            EvaluationError: the name leads out of the folder.
        """
        names = [name] if name.startswith(self.prefix) else [f"{self.prefix}{name}", name]
        if any(not part or Path(part).is_absolute() or ".." in Path(part).parts for part in names):
            raise EvaluationError(f"{place}: the video {shorten(name)} is no name within the folder of videos")
        tried = [f"{one}{ending}" for one in names for ending in ENDINGS]
        return next((one for one in tried if videos is not None and (videos / one).exists()), tried[0])

    def read_list(self, path: Path) -> dict[Key, Record]:
        """The records of test_q.json or test_a.json by id, each of which stands once."""
        records = objects(read_json(path), path, "a list of questions, as test_q.json and test_a.json have")
        return index_by(records, lambda record: identifier(record, path), path)

    def references(self, files: Files) -> dict[Key, Item]:
        path, asked = files.need("annotations"), files.need("questions")
        truths = self.read_list(path)
        questions = self.read_list(asked)
        require_same_keys(questions, truths, path, asked)
        return {
            key: Item(
                text_field(questions[key], "question", asked),
                self.read_truth(record, path),
                str(record["type"]) if "type" in record else None,
            )
            for key, record in truths.items()
        }

    def read_truth(self, record: Record, path: Path) -> str:
        """The right answer; some files hold a number where it is one."""
        value = read_field(record, "answer", path)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise EvaluationError(f"{path}: the answer to {shorten(record.get('question_id'))} is {shorten(value)}")
        return str(value)

    def part_of(self, reference: Item) -> str | None:
        return None if reference.kind is None else self.kinds.get(reference.kind, reference.kind)

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path, "question_id" if "question_id" in record else "id")

    def measure(self, references: Sequence[Item], texts: Sequence[str], **options: str) -> Score:
        """By comparison of strings."""
        metrics, marks = self.match(references, texts)
        return self.made({"accuracy": metrics["match"], **metrics}, marks)

    def match(self, references: Sequence[Item], texts: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
        """Shares of equal strings, as they are and in normal form, and the latter by type. -> metrics, marks"""
        exact = [float(text == item.answer) for text, item in zip(texts, references, strict=True)]
        marks = [
            float(normalise_vqa(text) == normalise_vqa(item.answer))
            for text, item in zip(texts, references, strict=True)
        ]
        metrics = {"exact_match": percent(exact), "exact_correct": int(sum(exact)), "match": percent(marks)}
        groups: dict[str, list[float]] = defaultdict(list)
        for mark, item in zip(marks, references, strict=True):
            if (part := self.part_of(item)) is not None:
                groups[part].append(mark)
        return metrics | {f"match, {name}": percent(found) for name, found in groups.items()}, marks

    def made(self, metrics: dict[str, Any], marks: Sequence[float]) -> Score:
        """A score over marks."""
        return Score.of_marks(metrics, metrics["accuracy"], marks, chance=0.0, chance_rule="an empty answer")

    def score(self, answers: Path, files: Files, only: Iterable[Question] | None = None, **options: str) -> Score:
        """With a judge, from its verdicts' file, or without either by comparison of strings."""
        self.check_options(options)
        graded = None if "judge" in options else self.read_grades(answers, files)
        if graded is not None:
            return graded
        if "judge" not in options:
            return super(JudgedBenchmark, self).score(answers, files, only, **options)
        return super().score(answers, files, only, **options)

    def grade(self, references: Sequence[Item], texts: Sequence[str], judge: Judge) -> Score:
        verdicts = [self.ask(judge, *pair) for pair in zip(references, texts, strict=True)]
        return self.add_up(verdicts, self.match(references, texts)[0])

    def ask(self, judge: Judge, item: Item, prediction: str) -> Verdict:
        """The judge's verdict about one answer; wrong where it gives none that can be read."""
        content = FORM.format(question=item.question, answer=item.answer, prediction=prediction)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        for attempt in range(ATTEMPTS):
            verdict = read_verdict(judge.ask(messages, 0.0, TOKENS, attempt))
            if verdict is not None:
                return verdict
        return Verdict(False, 0, read=False)

    def add_up(self, verdicts: Sequence[Verdict], more: Mapping[str, Any]) -> Score:
        """Share of right answers and mean grade over all questions."""
        marks = [float(verdict.right) for verdict in verdicts]
        metrics = {
            "accuracy": percent(marks),
            "score": sum(verdict.grade for verdict in verdicts) / len(verdicts),
            "yes": int(sum(marks)),
            "no": len(marks) - int(sum(marks)),
            "unread": sum(not verdict.read for verdict in verdicts),
        }
        return self.made({**metrics, **more}, marks)

    def read_grades(self, answers: Path, files: Files) -> Score | None:
        """The score of the released scripts' results.json, {id: [{pred, score}, {q, a, pred}]}."""
        content = read_one_object(answers)
        if not content or not all(isinstance(value, list) and len(value) == 2 for value in content.values()):
            return None
        require_same_keys(self.references(files), content, answers, files.need("annotations"))
        verdicts = []
        for key, value in content.items():
            try:
                verdicts.append(verdict_of(value[0]))
            except (ValueError, TypeError, KeyError) as error:
                raise EvaluationError(f"{answers}: {shorten(key)} has no verdict {{pred, score}}") from error
        return self.add_up(verdicts, {})

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write the lines {id, question, answer, pred} that the released judge script reads."""
        if files.annotations is None:
            return None
        references, texts = self.references(files), self.read_answers(answers, files)
        ids = {
            self.answer_key(record, answers): record["question_id"]
            for record in read_records(answers)
            if "question_id" in record
        }
        target = out.with_suffix(".jsonl")
        lines = [
            {
                "id": ids.get(key, key),
                "question": references[key].question,
                "answer": references[key].answer,
                "pred": text,
            }
            for key, text in texts.items()
            if key in references
        ]
        write_json_lines(target, lines)
        return target


def percent(marks: Sequence[float]) -> float:
    """The mean of marks between 0 and 1, in percent."""
    return 100 * sum(marks) / len(marks)
