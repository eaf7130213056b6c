"""One model on some benchmarks: what is asked of it, its answers, the score, and the result file of each benchmark."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.image_digest import digest_images
from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.answers import add_seconds, claim, digest_questions, merge, pending, read_notes
from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question
from llava_prumerge.evaluation.fingerprint import describe_environment
from llava_prumerge.evaluation.records import EvaluationError, Record, read_object
from llava_prumerge.evaluation.results import Score, summarise_kept, write_result
from llava_prumerge.evaluation.settings import EvaluationSettings, parse_generation
from llava_prumerge.ground.hub_names import is_missing, why_missing
from llava_prumerge.ground.yaml_files import read_yaml
from llava_prumerge.methods.labels import method_label, method_name
from llava_prumerge.methods.plugins import load_plugins
from llava_prumerge.methods.resolve import resolve, stored_reduction
from llava_prumerge.model.devices import DeviceError, choose_device, describe_start, was_said
from llava_prumerge.model.fingerprint import fingerprint
from llava_prumerge.model.template_files import template_in_use
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.ops.errors import ReductionError

if TYPE_CHECKING:
    from llava_prumerge.evaluation.generate import Ranks

logger = logging.getLogger("eval")

MERGED = "merged"
"""A folder of that name holds a run's merged model; the run's own name says more."""


@dataclass(frozen=True)
class Subject:
    """A model with a reduction and settings: one row of a table.

    Attributes:
        model: a folder, or a name on the Hub.
        settings: of the generation.
    """

    model: str
    settings: EvaluationSettings

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json; {} for a name on the Hub."""
        if not Path(self.model).is_dir():
            return {}
        return read_object(Path(self.model) / "config.json")

    @property
    def stored_reduction(self) -> dict[str, Any]:
        """The reduction block of the checkpoint, {} for none."""
        try:
            return stored_reduction(self.model)
        except ReductionError as error:
            raise EvaluationError(str(error)) from error

    @cached_property
    def replacement(self) -> dict[str, Any] | None:
        """The reduction block that takes the place of the checkpoint's; None for none."""
        try:
            load_plugins(self.settings.plugin)
            return resolve(self.settings.method, self.settings.overrides, own=self.stored_reduction)
        except ReductionError as error:
            raise EvaluationError(str(error)) from error

    @property
    def reduction(self) -> dict[str, Any]:
        """The reduction block that acts."""
        return self.stored_reduction if self.replacement is None else self.replacement

    @property
    def name(self) -> str:
        """How tables call the model."""
        path = Path(self.model)
        return self.settings.model_label or (path.resolve().parent.name if path.name == MERGED else path.name)

    @property
    def label(self) -> str:
        """How tables call the row."""
        return self.settings.label or method_label(self.reduction)

    @property
    def folder(self) -> str:
        """A folder name that tells this row's results from those of others."""
        words = [self.name, self.label, *(["no images"] if self.settings.images == "off" else [])]
        return "-".join(re.sub(r"[^\w.+=-]+", "_", word) for word in words)

    @cached_property
    def fingerprint(self) -> str:
        """The model's fingerprint."""
        return fingerprint(self.model)

    @property
    def trained(self) -> str | None:
        """How the weights learnt the method: told, or the checkpoint's stage, or "none" where another method acts."""
        if self.settings.train is not None:
            return self.settings.train
        if method_name(self.reduction) != "none" and self.reduction != self.stored_reduction:
            return "none"
        return stage_of(Path(self.model))

    def row(self) -> dict[str, Any]:
        """What tables find this row by."""
        return {
            "model": self.name,
            "label": self.label,
            "method": method_name(self.reduction),
            "train": self.trained,
            "images": self.settings.images,
        }


def stage_of(folder: Path) -> str | None:
    """The training stage a checkpoint comes from, where an adapter or the run's config.yaml tells."""
    if (folder / "adapter_config.json").is_file():
        return "lora"
    for path in (folder / "config.yaml", folder.parent / "config.yaml"):
        if path.is_file():
            settings = read_yaml(path)
            stage = settings.get("stage") if isinstance(settings, dict) else None
            return stage if stage in ("method", "projector", "lora", "full") else None
    return None


@dataclass(frozen=True)
class Run:
    """One benchmark for one subject."""

    subject: Subject
    task: Benchmark
    files: Files
    questions: list[Question]
    out: Path
    scoring: Mapping[str, str]

    @property
    def answers(self) -> Path:
        """The answer file."""
        return self.out / "answers" / f"{self.task.name}.jsonl"

    @property
    def max_new_tokens(self) -> int:
        """The limit of an answer."""
        return self.subject.settings.max_new_tokens or self.task.max_new_tokens

    @cached_property
    def image_files(self) -> str | None:
        """A hash of the images or videos that lie beside the questions; None where the questions carry theirs, or have none."""
        if self.files.images is None:
            return None
        named = (question.image or question.video for question in self.questions)
        return digest_images(self.files.images, (name for name in named if name))["sha256"]

    def claim(self, dtype: str) -> dict[str, Any]:
        """Bind the answer file to everything that decides what is in it."""
        settings = self.subject.settings
        header = {
            "task": self.task.name,
            "model": self.subject.fingerprint,
            "reduction": self.subject.reduction,
            "template": template_in_use(self.subject.model, self.subject.config.get("model_type"), settings.template),
            "questions": digest_questions(self.questions),
            "images": settings.images,
            "aspect": settings.aspect,
            "max_new_tokens": self.max_new_tokens,
            "dtype": dtype,
            "limit": settings.limit,
            "decoding": "greedy",
            "image_files": None if settings.images == "off" else self.image_files,
            **({"frames": settings.frames} if any(question.video for question in self.questions) else {}),
            **({"flip": settings.flip} if settings.flip != "none" else {}),
        }
        notes = {"model": self.subject.model, "question_file": str(self.files.questions)}
        claim(self.answers, header, notes, settings.accept_changes)
        return header

    def score(self) -> Score | None:
        """The score; None where answers cannot be scored here."""
        if not self.task.can_score(self.files, self.scoring):
            return None
        only = self.questions if self.subject.settings.limit is not None else None
        return self.task.score(self.answers, self.files, only, **self.scoring)

    def submit(self) -> Path | None:
        """The file for the benchmark's server, where it has one and all questions were asked."""
        if self.subject.settings.limit is not None:
            return None
        return self.task.submit(self.answers, self.files, self.out / "upload" / self.task.name)


def prepare(model: str, tasks: str, data: Path, out: Path, values: dict[str, str]) -> list[Run]:
    """Everything that can be known, and be wrong, before a model is loaded.

    Args:
        model: a folder, or a name on the Hub.
        tasks: names with commas between, or "all".
        data: the folder of the benchmarks.
        out: the folder of all results; the row gets a folder of its own there.
        values: settings of the generation and of the scorers.
    """
    chosen = benchmark.choose(tasks, data)
    scoring = {key: values[key] for task in chosen for key in task.options if key in values}
    if is_missing(model):
        raise EvaluationError(f"{model}: {why_missing(model)}")
    subject = Subject(model, parse_generation({key: value for key, value in values.items() if key not in scoring}))
    runs = []
    for task in chosen:
        files = task.files(data)
        if files.questions is None or not files.questions.exists():
            raise EvaluationError(
                f"{files.questions}: no such file; docs/evaluation.md says where a benchmark's data goes"
            )
        questions = task.questions(files)
        if subject.settings.images == "off":
            questions = [Question(q.id, q.prompt, q.text, extra=q.extra) for q in questions]
        own = {key: value for key, value in scoring.items() if key in task.options}
        runs.append(Run(subject, task, files, questions[: subject.settings.limit], out / subject.folder, own))
    return runs


class LoadedModel:
    """A model that is loaded when the first question needs it: a finished run is scored again in seconds.

    Args:
        subject: which model, with which reduction.
        ranks: this process among all.

    Raises:
        EvaluationError: the device cannot be used, or the attention implementation is not known.
    """

    def __init__(self, subject: Subject, ranks: Ranks) -> None:
        self.subject, self.ranks = subject, ranks
        try:
            self.device = choose_device(subject.settings.device)
            if subject.settings.attn is not None:  # also where all is answered and no model is loaded
                from llava_prumerge.model.assembling import check_attention

                check_attention(subject.settings.attn)
        except (DeviceError, LoadingError) as error:
            raise EvaluationError(str(error)) from error
        if ranks.rank == 0 and not was_said():
            logger.info(describe_start(self.device))
        automatic = "float16" if self.device.startswith("cuda") else "float32"
        self.dtype = automatic if subject.settings.dtype == "auto" else subject.settings.dtype

    @cached_property
    def model_and_processor(self) -> tuple[Any, Any]:
        """Model and processor."""
        from llava_prumerge.evaluation.generate import decode_plainly
        from llava_prumerge.model.loading import load_model
        from llava_prumerge.model.tower_cache import keep_tower_states

        subject, settings = self.subject, self.subject.settings
        try:
            model, processor = load_model(subject.model, subject.replacement, self.dtype, self.device, settings.attn)
        except LoadingError as error:
            raise EvaluationError(str(error)) from error
        keep_tower_states(model, settings.tower_cache, settings.tower_cache_gb)
        unused = decode_plainly(model)
        if unused and self.ranks.rank == 0:
            ignored = "%s: its generation_config.json sets %s; answers are greedy and use none of it"
            logger.warning(ignored, subject.model, unused)
        return model, processor

    @property
    def placeholders(self) -> int:
        """Visual tokens of an image without reduction, for models whose images all have the same number."""
        return self.subject.config.get("image_seq_length") or self.model_and_processor[0].config.image_seq_length

    def answer(self, run: Run) -> list[Record] | None:
        """Make a run's answer file complete; its records on rank 0, None on others."""
        from llava_prumerge.evaluation.generate import generate

        start, settings = time.perf_counter(), run.subject.settings
        if pending(run.answers, run.questions):
            model, processor = self.model_and_processor
            limit = run.max_new_tokens
            generate(
                model,
                processor,
                run.questions,
                run.files.images,
                run.answers,
                settings,
                limit,
                self.subject.name,
                self.ranks,
            )
        self.ranks.wait()
        if self.ranks.rank:
            return None
        add_seconds(run.answers, time.perf_counter() - start)
        return merge(run.answers, run.questions)


def execute(runs: Sequence[Run], scored: bool) -> dict[str, dict[str, Any]] | None:
    """Generate the answers of all runs, and score them; what to print by task, or None on ranks that print nothing."""
    from llava_prumerge.evaluation.generate import Ranks

    loaded = LoadedModel(runs[0].subject, Ranks.from_environment())
    headers = [run.claim(loaded.dtype) for run in runs]
    printed = {}
    for run, header in zip(runs, headers, strict=True):
        records = loaded.answer(run)
        if records is not None:
            printed[run.task.name] = conclude(run, header, records, loaded, scored)
    return printed or None


def conclude(
    run: Run, header: Mapping[str, Any], records: Sequence[Record], loaded: LoadedModel, scored: bool
) -> dict[str, Any]:
    """Write what follows from a run's answers, and return what to print."""
    kept = summarise_kept(records, lambda: loaded.placeholders)
    printed: dict[str, Any] = {"task": run.task.name, "questions": len(records)}
    if scored:
        score = run.score()
        result = {
            "task": run.task.name,
            "title": run.task.title,
            "row": run.subject.row(),
            **run.task.describe(score),
            "questions": len(records),
            "kept": kept,
            "reduction": run.subject.reduction,
            "model": run.subject.model,
            "generation": header,
            "settings": asdict(run.subject.settings),
            "ranks": loaded.ranks.world,
            "seconds": read_notes(run.answers).get("seconds"),
            **describe_environment(),
        }
        write_result(run.out / f"{run.task.name}.json", result)
        logger.info("%s: %s", run.task.title, run.out / f"{run.task.name}.json")
        printed |= run.task.report(score)
    upload = run.submit()
    return {**printed, "answers": str(run.answers), "upload": upload and str(upload), "kept": kept}
