"""Images per second: batches grouped by length, with and without reduction, against a batch-1 loop of the stock model.

    python -m eval.throughput --task vqav2 --data DIR --model FOLDER [--methods METHOD ...] [limit=128 batch_size=32]
    python -m eval.throughput --task vqav2 --data DIR --language-model FOLDER --vision-tower FOLDER ...

The loop is transformers' LlavaForConditionalGeneration with the same weights, prompts and pixels, one question after
the other. Ours is what `eval.run` does: threads that read images, batches of like length, left padding, answers on disk.
All take turns, round by round, on the same questions. Answers are compared with those of batch size 1, question by
question, and every one that differs is counted as a flip: of all tokens with the loop's, of a method with its own.
The last line is one JSON object.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.efficiency.options import finish
from llava_prumerge.evaluation import benchmark
from llava_prumerge.evaluation.answers import gather
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.settings import EvaluationSettings, parse_generation
from llava_prumerge.ground.command import Parser, command, pairs
from llava_prumerge.methods.cost import Benchmark
from llava_prumerge.methods.labels import label_of
from llava_prumerge.methods.plugins import add_plugin_option, load_plugins, plugin_settings
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.ops.errors import ReductionError

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration

logger = logging.getLogger("eval")

LOOP = "stock, batch 1"
TARGET = 4.0
"""Times the loop's images per second that PruMerge+ should reach on CPU at pocket size."""


@dataclass(frozen=True)
class Run:
    """The questions and how they are asked.

    Attributes:
        questions: the same for all.
        images: their folder.
        settings: batch size, template, threads.
        max_new_tokens: limit of an answer.
    """

    questions: Sequence[Question]
    images: Path | None
    settings: EvaluationSettings
    max_new_tokens: int


Texts = dict[tuple[str, str], str]
"""Answers by question."""


class Contestants:
    """Our model, which runs with any reduction, and the stock model around the same modules.

    Args:
        model: ours.
        processor: its tokenizer and image processor.
    """

    def __init__(self, model: PruMergeLlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        from transformers import LlavaConfig, LlavaForConditionalGeneration

        self.model, self.processor = model, processor
        values = model.config.to_dict()
        for key in ("model_type", "architectures", "reduction", "transformers_version"):
            values.pop(key, None)
        self.stock = LlavaForConditionalGeneration(LlavaConfig(**values)).to(model.device, model.dtype).eval()
        methods = [
            key for key in model.state_dict() if key.startswith(("model.reducer.", "model.language_model.pruner."))
        ]
        weights = {key: value for key, value in model.state_dict().items() if key not in methods}
        self.stock.load_state_dict(weights, assign=True)  # nothing is held twice
        self.stock.generation_config = model.generation_config

    def loop(self, run: Run) -> Texts:
        """What most people write: one question after the other through the stock model."""
        from llava_prumerge.evaluation.generate import answer_batch
        from llava_prumerge.evaluation.prompts import make_prompter

        prompter = make_prompter(self.processor, self.model.config, run.settings, run.images)
        return {
            question.key: answer_batch(
                self.stock, prompter, [question], prompter.pictures([question]), run.max_new_tokens
            )[0]
            for question in run.questions
        }

    def ours(self, run: Run, block: dict[str, Any], batch_size: int) -> Texts:
        """What `eval.run` does, into an answer file of its own."""
        from llava_prumerge.evaluation.generate import Ranks, generate
        from llava_prumerge.methods.registry import build_reducer

        if set(block) - {"vision"}:
            raise EvaluationError(
                f"{block}: throughput compares vision reducers; decoder pruners are built with their model"
            )
        self.model.model.use(build_reducer(block.get("vision")))
        if self.model.model.reducer is not None:
            self.model.model.reducer.to(self.model.device, self.model.dtype).eval()
        settings = replace(run.settings, batch_size=batch_size)
        with tempfile.TemporaryDirectory() as folder:
            answers = Path(folder) / "answers.jsonl"
            generate(
                self.model,
                self.processor,
                run.questions,
                run.images,
                answers,
                settings,
                run.max_new_tokens,
                "throughput",
                Ranks(),
            )
            return {key: record["text"] for key, record in gather(answers).items()}


def count_flips(texts: Texts, others: Texts) -> int:
    """Questions that two runs answer differently."""
    return sum(texts[key] != others[key] for key in others)


def compare(contestants: Contestants, run: Run, methods: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Take turns for some rounds; then count flips against batch size 1. -> one JSON object

    Args:
        contestants: the models.
        run: the questions.
        methods: reduction blocks by name, that of all tokens among them.
        rounds: of the comparison.
    """
    size = run.settings.batch_size
    actions: dict[str, Callable[[], Texts]] = {LOOP: lambda: contestants.loop(run)}
    for name, block in methods.items():
        actions[name] = lambda block=block: contestants.ours(run, block, size)
    texts, seconds = {}, {name: [] for name in actions}
    warm = replace(run, questions=run.questions[: 2 * size])
    contestants.loop(replace(run, questions=run.questions[:2]))
    for block in methods.values():
        contestants.ours(warm, block, size)
    for turn in range(rounds):
        for name in actions if turn % 2 == 0 else reversed(actions):
            begun = time.perf_counter()
            found = actions[name]()
            seconds[name].append(time.perf_counter() - begun)
            if texts.setdefault(name, found) != found:
                raise EvaluationError(f"{name}: the same questions got other answers in another round")
            logger.info("round %d of %d, %s: %.1f s", turn + 1, rounds, name, seconds[name][-1])
    rows = [describe(name, seconds, len(run.questions)) for name in actions]
    for row in rows[1:]:
        block = methods[row["name"]]
        alone = texts[LOOP] if not block else contestants.ours(run, block, 1)
        row |= {
            "flips": count_flips(texts[row["name"]], alone),
            "compared_with": LOOP if not block else "itself, batch 1",
        }
    return {"what": "throughput", "questions": len(run.questions), "batch_size": size, "rounds": rounds, "rows": rows}


def describe(name: str, seconds: dict[str, list[float]], questions: int) -> dict[str, Any]:
    """One row: images per second, and how many times those of the loop, each round's own."""
    from llava_prumerge.profiling.timing import ratios, spread

    own = seconds[name]
    return {
        "name": name,
        "images_per_second": spread([questions / value for value in own]),
        "times_the_loop": ratios(seconds[LOOP], own),
    }


def load(arguments: argparse.Namespace, settings: EvaluationSettings) -> Contestants:
    """The model of a folder, or one put together from backbones, its projector at random unless one is given."""
    import torch

    from llava_prumerge.model.assembling import assemble
    from llava_prumerge.model.devices import choose_device
    from llava_prumerge.model.loading import load_model
    from llava_prumerge.model.weight_files import LoadingError

    device = choose_device(settings.device)
    dtype = ("float16" if device.startswith("cuda") else "float32") if settings.dtype == "auto" else settings.dtype
    try:
        if arguments.model:
            model, processor = load_model(arguments.model, {}, dtype, device, settings.attn)
        else:
            torch.manual_seed(0)
            parts = arguments.language_model, arguments.vision_tower, arguments.projector
            model, processor = assemble(*parts, dtype=dtype, attn=settings.attn)
    except (LoadingError, OSError) as error:
        raise EvaluationError(" ".join(str(error).split())) from error
    return Contestants(model.to(device).eval(), processor)


def named_blocks(names: Sequence[str] | None, settings: EvaluationSettings) -> dict[str, dict[str, Any]]:
    """The methods to compare by what they were called; settings of methods go on top of each."""
    from llava_prumerge.methods.registry import measured_methods

    try:
        load_plugins(settings.plugin)
        chosen = names or measured_methods(Benchmark.THROUGHPUT)
        return {label_of(name): resolve(name, settings.overrides) or {} for name in chosen}
    except ReductionError as error:
        raise EvaluationError(str(error)) from error


def run_command(arguments: argparse.Namespace, settings: EvaluationSettings) -> dict[str, Any]:
    """Compare. -> what is printed last"""
    if bool(arguments.model) == bool(arguments.language_model and arguments.vision_tower):
        raise EvaluationError("give --model, or both --language-model and --vision-tower")
    if arguments.rounds < 1:
        raise EvaluationError(f"--rounds {arguments.rounds} is not a whole number of at least 1")
    task = benchmark.find(arguments.task)
    files = task.files(arguments.data)
    if files.questions is None or not files.questions.is_file():
        raise EvaluationError(f"{files.questions}: no such file; docs/evaluation.md says where a benchmark's data goes")
    asked = [question for question in task.questions(files) if question.has_image][: settings.limit]
    methods = {"all tokens": {}} | named_blocks(arguments.methods, settings)
    run = Run(asked, files.images, settings, settings.max_new_tokens or task.max_new_tokens)
    contestants = load(arguments, settings)
    result = compare(contestants, run, methods, arguments.rounds)
    from llava_prumerge.profiling.machine import describe as describe_machine

    return {
        **result,
        "task": task.name,
        "dtype": str(contestants.model.dtype).removeprefix("torch."),
        "projector": "random" if not (arguments.model or arguments.projector) else "trained",
        "target": TARGET,
        "machine": describe_machine(contestants.model.device),
    }


def as_text(result: dict[str, Any]) -> str:
    """The rows for people."""
    lines = [
        f"{result['questions']} questions of {result['task']}, batches of {result['batch_size']}, {result['dtype']}"
    ]
    for row in result["rows"]:
        speed, times = row["images_per_second"], row["times_the_loop"]
        flips = f"; {row['flips']} flips against {row['compared_with']}" if "flips" in row else ""
        lines.append(
            f"{row['name']:<16} {speed['median']:8.2f} images/s ({speed['q1']:.2f} to {speed['q3']:.2f}), "
            f"{times['median']:.2f} times the loop ({times['q1']:.2f} to {times['q3']:.2f}){flips}"
        )
    return "\n".join(lines)


@command()
def main(words: list[str]) -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = Parser("llava_prumerge.evaluation.throughput", __doc__, settings=None)
    parser.add_argument("--task", required=True, help=", ".join(benchmark.names()))
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmarks")
    for name in ("model", "language-model", "vision-tower", "projector"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="names, files or blocks of vision reducers")
    add_plugin_option(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the JSON object there, too")
    arguments = parser.parse_args(words)
    result = run_command(arguments, parse_generation(pairs([*arguments.settings, *plugin_settings(arguments)])))
    print(as_text(result))
    print(finish(result, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
