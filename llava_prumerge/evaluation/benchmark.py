"""What a benchmark is: where its files lie, what it asks, what a right answer is. The registry is this folder.

A file of this folder is a benchmark when it defines a subclass of `Benchmark` of its name; adding one is adding a file.
"""

from __future__ import annotations

import importlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    identifier,
    index_by,
    read_placed,
    read_records,
    require_same_keys,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.records import field as read_field
from llava_prumerge.evaluation.results import Score
from llava_prumerge.text.templates import IMAGE_MARKER

logger = logging.getLogger("eval")

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Files:
    """The files of one benchmark; `annotations` may be a folder, `images` is the one that `Question.image` is below."""

    questions: Path | None = None
    annotations: Path | None = None
    split: Path | None = None
    images: Path | None = None

    def need(self, name: str) -> Path:
        """The named file, or an error that names the option which gives it."""
        path = getattr(self, name)
        if path is None:
            raise EvaluationError(f"--{name} is needed for this task")
        return path


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    Attributes:
        id: as written to the answer file; need not be unique.
        prompt: as written to the answer file; unique together with `id`.
        text: the user's turn, without image mark or template.
        image: path below `Files.images`, or None for a question about no image.
        embedded: the image itself, base64, where the question file carries it.
        video: path below `Files.images` of the video it is about, a file or a folder of frames, in place of an image.
        extra: further fields of the answer record.
        place: where it stands, for messages: "FILE, line 7".
    """

    id: str | int
    prompt: str
    text: str
    image: str | None = None
    embedded: str | None = field(default=None, repr=False)
    video: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    @property
    def has_image(self) -> bool:
        """Whether an image or a video is shown with the question."""
        return self.image is not None or self.embedded is not None or self.video is not None

    @property
    def key(self) -> tuple[str, str]:
        """What tells this question from every other of its file."""
        return str(self.id), self.prompt


class Benchmark(ABC):
    """One benchmark; subclasses state its rules and nothing about models.

    Attributes:
        name: the value of `--task`.
        title: the column heading of the paper's tables.
        headline: the metric a table prints; `maximum` its largest value.
        folder: below the evaluation data folder.
        max_new_tokens: LLaVA's limit for this task.
        answer_field: of a record in an official result file, which is read as well as LLaVA's `text`.
        options: accepted `key=value` settings of the scorer, the default first; () accepts any text.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    headline: ClassVar[str]
    folder: ClassVar[str]
    maximum: ClassVar[float] = 100.0
    max_new_tokens: ClassVar[int] = 128
    answer_field: ClassVar[str] = "text"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    not_scored: ClassVar[str] = "no annotations here: the benchmark's server scores the upload file"
    """What is said where `can_score` says no."""

    def can_score(self, files: Files, options: Mapping[str, str]) -> bool:
        """Whether answers can be scored here, or only be generated."""
        return files.annotations is not None

    @abstractmethod
    def files(self, data: Path) -> Files:
        """The files in LLaVA's layout below the evaluation data folder."""

    @abstractmethod
    def questions(self, files: Files) -> list[Question]:
        """What is asked, in file order."""

    @abstractmethod
    def references(self, files: Files) -> dict[Key, Any]:
        """What the answers are compared with, by key, in file order."""

    @abstractmethod
    def answer_key(self, record: Record, path: Path) -> Key:
        """The key of the reference that an answer record (or a question written like one) belongs to."""

    @abstractmethod
    def measure(self, references: Sequence[Any], texts: Sequence[str], *_: Any, **options: Any) -> Score:
        """Compare answers with their references, one to one; a benchmark names the options it takes."""

    def part_of(self, reference: Any) -> str | None:
        """The part of the benchmark that a reference belongs to (a split, a subtask); None where there are no parts."""
        return None

    def name_of(self, score: Score) -> str:
        """What the headline number is called: a number over a part of the benchmark names that part."""
        return self.headline if score.part is None else f"{self.headline} ({score.part})"

    def read_answers(self, path: Path, files: Files) -> dict[Key, str]:
        """The answers of a file by key."""
        records = index_by(read_records(path), lambda record: self.answer_key(record, path), path)
        return {key: answer_text(record, path, self.answer_field) for key, record in records.items()}

    def submit(self, answers: Path, files: Files, out: Path) -> Path | None:
        """Write the file the benchmark's server takes, where there is one."""
        return None

    def score(self, answers: Path, files: Files, only: Iterable[Question] | None = None, **options: str) -> Score:
        """Score an answer file, which must answer every question exactly once.

        Args:
            answers: the answer file.
            files: what it is compared with.
            only: score just these questions (a limited run); None scores all.
            options: the scorer's settings, see `Benchmark.options`.
        """
        self.check_options(options)
        references, texts, part = self.join(answers, files, only)
        return replace(self.measure(references, texts, **options), part=part)

    def describe(self, score: Score | None) -> dict[str, Any]:
        """The scored part of a result file; where nothing can be scored (VQAv2's server has the truth) it says so."""
        if score is None:
            return {"value": None, "note": self.not_scored}
        return {
            "value": score.headline if score.n else None,
            "metric": self.name_of(score),
            "interval_95": list(score.interval),
            "interval_rule": score.interval_rule,
            "n": score.n,
            "chance": score.chance,
            "chance_rule": score.chance_rule,
            "metrics": score.metrics,
            "part": score.part,
            "marks": [round(mark, 4) for mark in score.marks],
        }

    def report(self, score: Score | None) -> dict[str, Any]:
        """What scoring prints."""
        if score is None:
            return {"task": self.name, "note": self.not_scored}
        rule = {"interval_95": list(score.interval), "interval_rule": score.interval_rule}
        named = {self.name_of(score) if name == self.headline else name: value for name, value in score.metrics.items()}
        return {"task": self.name, **named, "n": score.n, **rule}

    def check_options(self, options: Mapping[str, str]) -> None:
        """Refuse settings that the scorer does not have, and values that it does not accept."""
        for name, value in options.items():
            accepted = self.options.get(name)
            if accepted is None:
                raise EvaluationError(
                    f"{self.name}: unknown setting {name!r}; it has {', '.join(self.options) or 'none'}"
                )
            if accepted and value not in accepted:
                raise EvaluationError(f"{self.name}: {name} must be one of {', '.join(accepted)}, not {value!r}")

    def join(
        self, answers: Path, files: Files, only: Iterable[Question] | None
    ) -> tuple[list[Any], list[str], str | None]:
        """References and answers, one to one, and which part of the benchmark they are (None: all of it)."""
        references = everything = self.references(files)
        if only is not None:
            path = files.need("questions")
            kept = {self.answer_key({"question_id": question.id, "prompt": question.prompt}, path) for question in only}
            references = {key: reference for key, reference in references.items() if key in kept}
        if not references:
            raise EvaluationError(f"{self.name}: {files.annotations or answers} has nothing to compare with")
        texts = self.read_answers(answers, files)
        require_same_keys(references, texts, answers, files.annotations or answers)
        part = self.describe_part(list(everything.values()), list(references.values()))
        return list(references.values()), [texts[key] for key in references], part

    def describe_part(self, everything: Sequence[Any], scored: Sequence[Any]) -> str | None:
        """In words, which part of all references was scored; None for all of them."""
        if len(scored) == len(everything):
            return None
        told = f"{len(scored)} of {len(everything)} questions"
        whole, here = ([self.part_of(reference) for reference in some] for some in (everything, scored))
        absent = [part for part in dict.fromkeys(whole) if part is not None and part not in here]
        present = [part for part in dict.fromkeys(here) if part is not None]
        if not absent:
            return told
        return f"{told}; {present[0]} alone" if len(present) == 1 else f"{told}; without {', '.join(absent)}"


def answer_text(record: Record, path: Path, name: str = "text") -> str:
    """The answer of a record, which must be text: its field of that name, or else LLaVA's `text`."""
    text = read_field(record, name if name in record else "text", path)
    if not isinstance(text, str):
        told = f"the answer to {shorten(record.get('question_id'))} is {shorten(text)}, not text"
        raise EvaluationError(f"{path}: {told}")
    return text


def read_questions(path: Path) -> list[Question]:
    """Questions in LLaVA's common format: JSON lines of question_id, image (absent for none), text, category."""
    questions = []
    for place, record in read_placed(path):
        identifier(record, place)
        image = record.get("image") or None
        if image is not None and not isinstance(image, str):
            raise EvaluationError(f"{place}: 'image' must be a path, found {shorten(image)}")
        written = text_field(record, "text", place)
        text = without_markers(written, image is not None, place)
        questions.append(Question(record["question_id"], written, text, image, place=place))
    return questions


def without_markers(text: str, has_image: bool, place: str) -> str:
    """A question without image markers: its image, of which there is one, is shown in front of it.

    LLaVA's training and its ScienceQA reader take them out as well; its other readers stop at a second marker.

    Raises:
        EvaluationError: there is a marker and no image, nothing is left, or the text is no valid Unicode.
    """
    if IMAGE_MARKER in text:
        if not has_image:
            raise EvaluationError(f"{place}: the question says {IMAGE_MARKER}, but has no image")
        text = text.replace(IMAGE_MARKER, "").strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EvaluationError(f"{place}: the question is not valid Unicode ({error.reason})") from error
    if not text.strip():
        raise EvaluationError(f"{place}: the question is empty")
    return text


def without_suffix(text: str, suffix: str = SHORT_ANSWER) -> str:
    """A question without the instruction that LLaVA appends to it."""
    return text.replace(suffix, "").strip()


def names() -> list[str]:
    """The benchmarks of this folder: files with a class whose `name` is the file's. They are read, not imported."""
    declares = re.compile(r"^    name = \"(\w+)\"$", re.MULTILINE)
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if path.stem in declares.findall(path.read_text("utf-8"))]


def find(name: str) -> Benchmark:
    """The benchmark of that name."""
    if name not in names():
        raise EvaluationError(f"unknown task {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{__package__}.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return next(kind for kind in kinds if issubclass(kind, Benchmark))()


def choose(tasks: str, data: Path) -> list[Benchmark]:
    """The benchmarks of `--task`: those named, or with "all" every one whose questions are there."""
    if tasks != "all":
        return [find(name) for name in tasks.split(",")]
    every = [find(name) for name in names()]
    present = [task for task in every if (asked := task.files(data).questions) is not None and asked.exists()]
    if not present:
        raise EvaluationError(f"{data}: questions of no benchmark are there; docs/evaluation.md says what goes where")
    absent = [task.name for task in every if task not in present]
    if absent:
        logger.info("all: %s; not in %s: %s", ", ".join(task.name for task in present), data, ", ".join(absent))
    return present
