"""Command line: generate answers, score them, or both.

    python -m eval.run score    --task T --answers FILE [--questions F] [--annotations F] [--split F] [key=value ...]
    python -m eval.run generate --task T[,T...] --model PATH [--data DIR] [--out DIR] [key=value ...]
    python -m eval.run run      --task T[,T...] --model PATH [--data DIR] [--out DIR] [key=value ...]

The last line on stdout is one JSON object; progress and messages go to stderr. Settings: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.benchmark import Files
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import report
from llava_prumerge.evaluation.settings import whole_number

logger = logging.getLogger("eval")

DATA, RESULTS = Path("playground/data/eval"), Path("runs/results")


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


def score_command(arguments: argparse.Namespace, values: dict[str, str]) -> dict[str, Any]:
    """Score an existing answer file."""
    task = benchmark.find(arguments.task)
    files = Files(arguments.questions, arguments.annotations, arguments.split)
    limit = values.pop("limit", None)
    only = None if limit is None else task.questions(files)[: whole_number("limit", limit)]
    return report(task, task.score(arguments.answers, files, only, **values))


def run_command(arguments: argparse.Namespace, values: dict[str, str]) -> dict[str, Any] | None:
    """Generate, and for `run` also score; None on ranks that have nothing to print."""
    from llava_prumerge.evaluation.execution import execute, prepare

    runs = prepare(arguments.model, arguments.task, arguments.data, arguments.out, values)
    if arguments.check:
        return None
    printed = execute(runs, scored=arguments.command == "run")
    if printed is None:
        return None
    return printed[runs[0].task.name] if len(runs) == 1 else printed


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
        command.add_argument("--out", type=Path, default=RESULTS, help=f"folder of all results (default {RESULTS})")
        command.add_argument("--check", action="store_true", help="stop when files and settings have been looked at")
    known = ", ".join(benchmark.names())
    score.add_argument("--task", required=True, help=known)
    for command in (generate, both):
        command.add_argument("--task", required=True, help=f"{known}; several with commas between, or all")
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
