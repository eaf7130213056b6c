"""Benchmarks whose answers a judge model grades."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import Benchmark, Files, Question
from llava_prumerge.evaluation.judge import EndpointJudge, Judge
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import Score


class JudgedBenchmark(Benchmark):
    """A benchmark that needs `judge=URL [judge_model=NAME]`; without them answers are generated and not scored.

    Subclasses grade with `grade`; `read_grades` reads grades that exist already.

    Attributes:
        default_model: asked for where no `judge_model` is named.
    """

    options = {"judge": (), "judge_model": ()}
    not_scored = "no judge here: judge=URL [judge_model=NAME] grades the answers, see docs/evaluation.md"
    default_model: str = "gpt-4o-2024-11-20"

    @abstractmethod
    def grade(self, references: Sequence[Any], texts: Sequence[str], judge: Judge) -> Score:
        """Ask the judge about every answer and add up."""

    def read_grades(self, answers: Path, files: Files) -> Score | None:
        """The score of a file of grades; None where `answers` is an answer file."""
        return None

    def can_score(self, files: Files, options: Mapping[str, str]) -> bool:
        """Only with a judge."""
        return super().can_score(files, options) and "judge" in options

    def measure(self, references: Sequence[Any], texts: Sequence[str], **options: str) -> Score:
        raise EvaluationError(f"{self.name}: {self.not_scored}")

    def score(self, answers: Path, files: Files, only: Iterable[Question] | None = None, **options: str) -> Score:
        """Score a file of grades, or let the judge grade an answer file; its replies are kept beside the file."""
        self.check_options(options)
        if "judge" not in options:
            graded = self.read_grades(answers, files)
            if graded is None:
                raise EvaluationError(f"{self.name}: {self.not_scored}")
            return graded
        cache = answers.with_name(f"{answers.name.split('.')[0]}.judge.jsonl")
        judge = EndpointJudge(options["judge"], options.get("judge_model", self.default_model), cache)
        return self.score_with(judge, answers, files, only)

    def score_with(self, judge: Judge, answers: Path, files: Files, only: Iterable[Question] | None = None) -> Score:
        """Score an answer file with any judge; the result names it."""
        references, texts, part = self.join(answers, files, only)
        score = self.grade(references, texts, judge)
        return replace(score, part=part, metrics={**score.metrics, "judge": judge.describe()})
