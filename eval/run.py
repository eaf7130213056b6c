"""Command line: generate answers, score them, or both.

    python -m eval.run score    --task T --answers FILE [--questions F] [--annotations F] [--split F] [key=value ...]
    python -m eval.run generate --task T --model PATH [--data DIR] [--out DIR] [key=value ...]
    python -m eval.run run      --task T --model PATH [--data DIR] [--out DIR] [key=value ...]

The last line on stdout is one JSON object; progress and messages go to stderr. Settings: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval import benchmark
from eval.benchmark import Benchmark, Files, Question, Score
from eval.fingerprint import describe_environment, fingerprint, method_label, method_name
from eval.records import EvaluationError, Record, read_json
from eval.results import describe_score, summarise_kept, write_result
from eval.settings import Settings, apply_overrides, parse_generation, read_method, whole_number

logger = logging.getLogger("eval")

DATA = Path("playground/data/eval")


def parse_settings(tokens: Sequence[str]) -> dict[str, str]:
    """`key=value` arguments as a dictionary."""
    settings: dict[str, str] = {}
    for token in tokens:
        key, equals, value = token.partition("=")
        if not equals or key.startswith("-"):
            raise EvaluationError(f"{token!r} is neither an option nor a key=value setting")
        if key in settings:
            raise EvaluationError(f"the setting {key} is given twice")
        settings[key] = value
    return settings


def report(task: Benchmark, score: Score) -> dict[str, Any]:
    """What scoring prints."""
    rule = {"interval_95": list(score.interval), "interval_rule": score.interval_rule}
    return {"task": task.name, **score.metrics, "n": score.n, **rule}


def score_command(arguments: argparse.Namespace, values: dict[str, str]) -> dict[str, Any]:
    """Score an existing answer file."""
    task = benchmark.find(arguments.task)
    files = Files(arguments.questions, arguments.annotations, arguments.split)
    limit = values.pop("limit", None)
    only = None if limit is None else task.questions(files)[: whole_number("limit", limit)]
    return report(task, task.score(arguments.answers, files, only, **values))


@dataclass(frozen=True)
class Run:
    """One model on one benchmark, before and after its answers exist."""

    task: Benchmark
    files: Files
    questions: list[Question]
    settings: Settings
    model: str
    reduction: dict[str, Any] | None
    out: Path

    @property
    def answers(self) -> Path:
        """The answer file."""
        return self.out / "answers" / f"{self.task.name}.jsonl"

    @property
    def max_new_tokens(self) -> int:
        """The limit of an answer."""
        return self.settings.max_new_tokens or self.task.max_new_tokens


def prepare_run(arguments: argparse.Namespace, values: dict[str, str]) -> tuple[Run, dict[str, str]]:
    """Everything that can be known, and be wrong, before a model is loaded; and the scorer's settings."""
    task = benchmark.find(arguments.task)
    scoring = {key: values.pop(key) for key in list(values) if key in task.options}
    settings = parse_generation(values)
    files = task.files(arguments.data)
    if files.questions is None or not files.questions.is_file():
        raise EvaluationError(f"{files.questions}: no such file; docs/evaluation.md says where a benchmark's data goes")
    questions = task.questions(files)
    if settings.images == "off":
        questions = [Question(q.id, q.prompt, q.text, extra=q.extra) for q in questions]
    if settings.limit is not None:
        questions = questions[: settings.limit]
    reduction = read_method(settings.method)
    if settings.overrides:
        reduction = apply_overrides(
            stored_reduction(arguments.model) if reduction is None else reduction, settings.overrides
        )
    effective = stored_reduction(arguments.model) if reduction is None else reduction
    out = arguments.out or Path("results") / default_name(arguments.model, settings, effective)
    return Run(task, files, questions, settings, arguments.model, reduction, out), scoring


def stored_reduction(model: str) -> dict[str, Any]:
    """The reduction block in a checkpoint's config.json; {} for none, and for a name on the Hub."""
    path = Path(model) / "config.json"
    if not Path(model).is_dir():
        return {}
    return read_json(path).get("reduction") or {}


def default_name(model: str, settings: Settings, reduction: dict[str, Any]) -> str:
    """A folder name that tells model, method and images apart."""
    method = (
        "" if settings.method is None and not settings.overrides else f"-{method_label(reduction).replace(' ', '_')}"
    )
    return f"{Path(model).name}{method}{'-no_images' if settings.images == 'off' else ''}"


def generate_answers(run: Run) -> tuple[list[Record] | None, dict[str, Any]]:
    """Make the answer file; the records on rank 0, None on others, and what describes the generation."""
    from eval.answers import claim, digest_questions, merge
    from eval.generate import Ranks, generate
    from llava_prumerge.model.loading import LoadingError, load_model

    ranks, settings = Ranks.from_environment(), run.settings
    device = settings.device or ranks.device()
    dtype = settings.dtype if settings.dtype != "auto" else "float16" if device.startswith("cuda") else "float32"
    header = {
        "task": run.task.name,
        "model": fingerprint(run.model),
        "reduction": effective_reduction(run),
        "template": settings.template,
        "questions": digest_questions(run.questions),
        "images": settings.images,
        "aspect": settings.aspect,
        "max_new_tokens": run.max_new_tokens,
        "dtype": dtype,
        "limit": settings.limit,
        "decoding": "greedy",
    }
    claim(run.answers, header, {"model": run.model, "question_file": str(run.files.questions)})
    try:
        model, processor = load_model(
            run.model, reduction=run.reduction, dtype=dtype, device=device, attn=settings.attn
        )
    except LoadingError as error:
        raise EvaluationError(str(error)) from error
    start = time.perf_counter()
    name = settings.model_label or Path(run.model).name
    answered = generate(
        model, processor, run.questions, run.files.images, run.answers, settings, run.max_new_tokens, name, ranks
    )
    seconds = time.perf_counter() - start
    ranks.wait()
    records = merge(run.answers, run.questions) if ranks.rank == 0 else None
    notes = {"placeholders": model.config.image_seq_length, "answered_now": answered, "seconds": round(seconds, 1)}
    return records, {"generation": header, "ranks": ranks.world, "batch_size": settings.batch_size, **notes}


def effective_reduction(run: Run) -> dict[str, Any]:
    """The reduction block that acts."""
    return stored_reduction(run.model) if run.reduction is None else run.reduction


def trained_with(run: Run) -> str | None:
    """How the weights learnt the method: told, or the checkpoint's stage, or "none" where another method acts."""
    if run.settings.train is not None:
        return run.settings.train
    if run.reduction is not None and run.reduction != stored_reduction(run.model):
        return "none" if method_name(run.reduction) != "none" else stage_of(Path(run.model))
    return stage_of(Path(run.model))


def stage_of(folder: Path) -> str | None:
    """The training stage a checkpoint comes from, where an adapter or the run's config.yaml tells."""
    if (folder / "adapter_config.json").is_file():
        return "lora"
    for path in (folder / "config.yaml", folder.parent / "config.yaml"):
        if path.is_file():
            import yaml

            stage = (yaml.safe_load(path.read_text("utf-8")) or {}).get("stage")
            return stage if stage in ("projector", "lora", "full") else None
    return None


def run_command(arguments: argparse.Namespace, values: dict[str, str]) -> dict[str, Any] | None:
    """Generate, and for `run` also score; None on ranks that have nothing to print."""
    run, scoring = prepare_run(arguments, values)
    records, made = generate_answers(run)
    if records is None:
        return None
    settings, reduction = run.settings, effective_reduction(run)
    result = {
        "task": run.task.name,
        "title": run.task.title,
        "row": {
            "model": settings.model_label or Path(run.model).name,
            "label": settings.label or method_label(reduction),
            "method": method_name(reduction),
            "train": trained_with(run),
            "images": settings.images,
        },
        "questions": len(run.questions),
        "kept": summarise_kept(records, made.pop("placeholders")),
        "reduction": reduction,
        "model": run.model,
        "settings": asdict(settings),
        **made,
        **describe_environment(),
    }
    upload = None
    if settings.limit is None:
        upload = run.task.submit(run.answers, run.files, run.out / "upload" / run.task.name)
    score = None
    if arguments.command == "run" and run.files.annotations is not None:
        only = run.questions if settings.limit is not None else None
        score = run.task.score(run.answers, run.files, only, **scoring)
    if arguments.command == "run":
        path = run.out / f"{run.task.name}.json"
        write_result(path, {**result, **describe_score(run.task, score)})
        logger.info("result: %s", path)
    printed = {"answers": str(run.answers), "upload": upload and str(upload), "kept": result["kept"]}
    return {**(report(run.task, score) if score else {"task": run.task.name, "n": len(run.questions)}), **printed}


def make_parser() -> argparse.ArgumentParser:
    """The options of the three commands."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="score an existing answer file")
    score.add_argument("--answers", type=Path, required=True)
    for name in ("questions", "annotations", "split"):
        score.add_argument(f"--{name}", type=Path)
    generate = commands.add_parser("generate", help="generate answers")
    both = commands.add_parser("run", help="generate answers and score them")
    for command in (generate, both):
        command.add_argument("--model", required=True)
        command.add_argument("--data", type=Path, default=DATA, help=f"folder of the benchmarks (default {DATA})")
        command.add_argument("--out", type=Path, help="folder of the results (default results/<model and method>)")
    for command in (score, generate, both):
        command.add_argument("--task", required=True, help=", ".join(benchmark.names()))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 for files or settings that cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments, rest = make_parser().parse_known_args(argv)
    command = score_command if arguments.command == "score" else run_command
    try:
        result = command(arguments, parse_settings(rest))
    except EvaluationError as error:
        logger.error("error: %s", error)
        return 2
    if result is not None:
        sys.stdout.write(f"{json.dumps(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
