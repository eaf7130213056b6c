"""Which evaluation results a release carries: those of exactly this checkpoint with exactly its method, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.answers import header_path, read_header
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import read_results
from llava_prumerge.hub.source import ReleaseError, Source
from llava_prumerge.methods.labels import method_label, method_name

RESULT_FIELDS = ("row", "title", "value", "questions", "reduction", "generation")
RESULTS = Path("runs/results")  # where scripts/eval/*.sh write to


@dataclass(frozen=True)
class OfficialSet:
    """A benchmark's question file as LLaVA uses it.

    Attributes:
        name: as a model card writes it.
        split: of the data set.
        questions: how many LLaVA's question file holds.
    """

    name: str
    split: str
    questions: int


OFFICIAL_SETS = {
    "vqav2": OfficialSet("VQAv2", "test-dev", 107_394),
    "sqa": OfficialSet("ScienceQA", "test", 4_241),
    "textvqa": OfficialSet("TextVQA", "validation", 5_000),
    "pope": OfficialSet("POPE", "test", 8_910),
    "mme": OfficialSet("MME", "test", 2_374),
    "mmbench": OfficialSet("MMBench", "dev", 4_377),
}


@dataclass(frozen=True)
class Evaluation:
    """A result file of this checkpoint."""

    path: Path
    result: dict[str, Any]

    @property
    def official(self) -> OfficialSet | None:
        """The set that was asked; None where the number of questions shows that it was another one, or a part of it."""
        known = OFFICIAL_SETS.get(self.result["task"])
        return known if known is not None and known.questions == self.result["questions"] else None

    @property
    def data(self) -> str:
        """What was asked, in words that claim no more than is known."""
        if self.official is not None:
            return f"{self.official.name} ({self.official.split})"
        known = OFFICIAL_SETS.get(self.result["task"])
        name = known.name if known else self.result["title"]
        return f"{self.result['questions']} questions in {name}'s format (not the official set)"

    @property
    def maximum(self) -> float:
        """The largest value the metric can have."""
        return benchmark.find(self.result["task"]).maximum


def find_evaluations(source: Source, folders: Sequence[Path] | None) -> list[Evaluation]:
    """The evaluations to publish, in the order of the tasks.

    Args:
        source: the checkpoint.
        folders: where to look: everything found there has to be of this checkpoint. None looks through `RESULTS` for
            result files that name its folder or its content.

    Raises:
        ReleaseError: a result file is of another revision or method, or two are of one task.
    """
    tasks = benchmark.names()
    try:
        if folders is None:
            found = (
                [pair for pair in read_results([RESULTS], tasks) if is_about(source, pair[1])]
                if RESULTS.is_dir()
                else []
            )
        else:
            found = list(read_results(folders, tasks))
    except EvaluationError as error:
        raise ReleaseError(str(error)) from error
    if folders and not found:
        raise ReleaseError(f"no result files of eval below {', '.join(map(str, folders))}")
    chosen: dict[str, Evaluation] = {}
    for path, result in found:
        check_result(source, path, result)
        twin = chosen.get(result["task"])
        if twin is not None:
            raise ReleaseError(f"{path} and {twin.path} are both of {result['task']}; name one folder with --results")
        chosen[result["task"]] = Evaluation(path, result)
    return [chosen[task] for task in tasks if task in chosen]


def is_about(source: Source, result: dict[str, Any]) -> bool:
    """Whether a result claims to be of this checkpoint, by its folder or by its content."""
    generation = result.get("generation")
    same_content = isinstance(generation, dict) and generation.get("model") in source.fingerprints.values()
    places = {Path(folder).resolve() for folder in source.fingerprints}
    return same_content or Path(str(result.get("model"))).resolve() in places


def check_result(source: Source, path: Path, result: dict[str, Any]) -> None:
    """Refuse a result that is not of this checkpoint, its own method, with images."""
    generation = result.get("generation")
    lacks = [name for name in RESULT_FIELDS if name not in result]
    if lacks or not isinstance(generation, dict) or not isinstance(result["row"], dict):
        told = f"lacks {', '.join(lacks)}" if lacks else "does not say what made it"
        raise ReleaseError(f"{path} {told}; evaluate again, or leave it out with --results")
    if generation.get("model") not in source.fingerprints.values():
        raise ReleaseError(
            f"{path} is of another revision: it was measured on {result.get('model')} with fingerprint "
            f"{shorten(generation.get('model'))}, but {source.weights} now is {shorten(source.fingerprints[str(source.weights)])}; "
            "evaluate again, or say which results belong to it with --results"
        )
    acted = {name: block for name, block in (result["reduction"] or {}).items() if block}
    own = {name: block for name, block in source.reduction.items() if block}
    if (
        acted != own
        or result["row"].get("method") != method_name(own)
        or (generation.get("reduction") or {}) != result["reduction"]
    ):
        raise ReleaseError(
            f"{path} is of another method: {method_label(acted)}, but {source.weights} has {method_label(own)}; "
            "say which results belong to it with --results"
        )
    if result["row"].get("images") != "on":
        raise ReleaseError(f"{path} is of questions asked without their images; leave it out with --results")
    check_answers(path, result)


def check_answers(path: Path, result: dict[str, Any]) -> None:
    """Refuse a result whose answer file, where it still lies beside it, was made by something else."""
    answers = path.parent / "answers" / f"{result['task']}.jsonl"
    if not header_path(answers).is_file():
        return
    try:
        header = read_header(answers)
    except EvaluationError as error:
        raise ReleaseError(str(error)) from error
    if header != result["generation"]:
        raise ReleaseError(
            f"{path} and {answers} are of different runs; evaluate again (a complete answer file is only scored)"
        )


def shorten(mark: object) -> str:
    """The first digits of a fingerprint."""
    return str(mark)[:12]
