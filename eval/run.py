"""Command line: generate answers, score them, or both.

    python -m eval.run score    --task T --answers FILE [--questions F] [--annotations F] [--split F] [key=value ...]
    python -m eval.run generate --task T --model PATH [--data DIR] [--out DIR] [key=value ...]
    python -m eval.run run      --task T --model PATH [--data DIR] [--out DIR] [key=value ...]

The last line on stdout is one JSON object; progress and messages go to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eval import benchmark
from eval.benchmark import Files, Score
from eval.records import EvaluationError

logger = logging.getLogger("eval")


def parse_settings(tokens: Sequence[str]) -> dict[str, str]:
    """`key=value` arguments as a dictionary."""
    settings: dict[str, str] = {}
    for token in tokens:
        key, equals, value = token.partition("=")
        if not equals or not key.isidentifier():
            raise EvaluationError(f"{token!r} is neither an option nor a key=value setting")
        if key in settings:
            raise EvaluationError(f"the setting {key} is given twice")
        settings[key] = value
    return settings


def report(task: str, score: Score) -> dict[str, object]:
    """What `score` prints."""
    low, high = score.interval
    return {
        "task": task,
        **score.metrics,
        "n": score.n,
        "interval_95": [low, high],
        "interval_rule": score.interval_rule,
    }


def score_command(arguments: argparse.Namespace, settings: dict[str, str]) -> dict[str, object]:
    """Score an existing answer file."""
    task = benchmark.find(arguments.task)
    files = Files(arguments.questions, arguments.annotations, arguments.split)
    limit = settings.pop("limit", None)
    only = None if limit is None else task.questions(files)[: whole_number("limit", limit)]
    return report(task.name, task.score(arguments.answers, files, only, **settings))


def whole_number(name: str, value: str) -> int:
    """A setting that must be a positive whole number."""
    if not value.isdigit() or int(value) < 1:
        raise EvaluationError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)


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
    for command in (score,):
        command.add_argument("--task", required=True, help=", ".join(benchmark.names()))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 for files or settings that cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments, rest = make_parser().parse_known_args(argv)
    try:
        result = score_command(arguments, parse_settings(rest))
    except EvaluationError as error:
        logger.error("error: %s", error)
        return 2
    sys.stdout.write(f"{json.dumps(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
