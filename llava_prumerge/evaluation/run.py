"""Command line: generate answers, score them, or both.

    llava-prumerge score             --task T --answers FILE [--questions F] [--annotations F] [key=value ...]
    llava-prumerge evaluate          --task T[,T...] --model PATH [--data DIR] [--out DIR] [key=value ...]
    llava-prumerge evaluate generate --task T[,T...] --model PATH [--data DIR] [--out DIR] [key=value ...]

The same as `python -m eval.run score`, `run` and `generate` in a checkout. `generate` does not score.
The last line on stdout is one JSON object; progress and messages go to stderr. Settings: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.benchmark import Files
from llava_prumerge.evaluation.settings import whole_number
from llava_prumerge.ground import process
from llava_prumerge.ground.command import Parser, command, pairs
from llava_prumerge.methods.plugins import add_plugin_option, plugin_settings

logger = logging.getLogger("eval")

DATA, RESULTS = Path("playground/data/eval"), Path("runs/results")


def score_command(arguments: argparse.Namespace, values: dict[str, str]) -> dict[str, Any]:
    """Score an existing answer file."""
    task = benchmark.find(arguments.task)
    files = Files(arguments.questions, arguments.annotations, arguments.split)
    limit = values.pop("limit", None)
    only = None if limit is None else task.questions(files)[: whole_number("limit", limit)]
    return task.report(task.score(arguments.answers, files, only, **values))


def run_command(arguments: argparse.Namespace, values: dict[str, str]) -> dict[str, Any] | None:
    """Generate, and for `run` also score; None on ranks that have nothing to print."""
    process.prepare()
    from llava_prumerge.evaluation.execution import execute, prepare

    runs = prepare(arguments.model, arguments.task, arguments.data, arguments.out, values)
    if arguments.check:
        return None
    printed = execute(runs, scored=arguments.command == "run")
    if printed is None:
        return None
    return printed[runs[0].task.name] if len(runs) == 1 else printed


def make_parser() -> Parser:
    """The options of the three commands."""
    parser = Parser("llava_prumerge.evaluation.run", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="score|generate|run")
    score = commands.add_parser("score", help="score an existing answer file", description=__doc__, settings=None)
    score.add_argument("--answers", type=Path, required=True)
    for name in ("questions", "annotations", "split"):
        score.add_argument(f"--{name}", type=Path)
    generate = commands.add_parser("generate", help="generate answers", description=__doc__, settings=None)
    both = commands.add_parser("run", help="generate answers and score them", description=__doc__, settings=None)
    for made in (generate, both):
        made.add_argument("--model", required=True)
        made.add_argument("--data", type=Path, default=DATA, help=f"folder of the benchmarks (default {DATA})")
        made.add_argument("--out", type=Path, default=RESULTS, help=f"folder of all results (default {RESULTS})")
        add_plugin_option(made)
        made.add_argument("--check", action="store_true", help="stop when files and settings have been looked at")
    known = ", ".join(benchmark.names())
    score.add_argument("--task", required=True, help=known)
    for made in (generate, both):
        made.add_argument("--task", required=True, help=f"{known}; several with commas between, or all")
    return parser


@command(interrupted="interrupted; the same command goes on from here")
def main(words: list[str]) -> None:
    """Run one command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = make_parser().parse_args(words)
    work = score_command if arguments.command == "score" else run_command
    plugins = [] if arguments.command == "score" else plugin_settings(arguments)
    result = work(arguments, pairs([*arguments.settings, *plugins]))
    if result is not None:
        sys.stdout.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    sys.exit(main())
