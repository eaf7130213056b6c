"""Samples per second, peak memory and padding of training steps: all tokens against reductions, stage by stage.

    python -m llava_prumerge.train.speed RECIPE.yaml [RECIPE.yaml ...] [--methods METHOD ...] [key=value ...]

Each recipe is trained for a few optimiser steps without a method and with each one named, by the very trainer that
`train.run` uses, on the same samples. They take turns, round by round; the first step of a turn is not counted, nor is
the first round. All trainers of a recipe are held in memory at once. Padding is measured by itself, with the first
recipe, over `--padding-batches` micro-batches, in the recipe's order and in a plain shuffle. The last line is one JSON object.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import itertools
import logging
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.efficiency.options import finish
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.cost import Benchmark
from llava_prumerge.methods.labels import label_of
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.model.devices import choose_device, hide_gpus, keep_one_gpu
from llava_prumerge.train.arguments import RecipeError, TrainArguments, load_arguments
from llava_prumerge.train.preflight import check_inputs
from llava_prumerge.train.run import quieten_libraries

if TYPE_CHECKING:
    import torch

    from llava_prumerge.train.trainer import LlavaTrainer

logger = logging.getLogger(__name__)

ALL = "none"


def write_random_projector(arguments: TrainArguments, folder: Path) -> str:
    """A projector as stage 1 would leave it, but drawn at random: what a step costs does not depend on it."""
    from safetensors.torch import save_file

    from llava_prumerge.model.assembling import PROJECTOR_FILE
    from llava_prumerge.train.stages import start_base

    model, _ = start_base(arguments).build(None, None, "float32", None)
    weights = model.model.multi_modal_projector.state_dict()
    save_file({f"multi_modal_projector.{name}": value for name, value in weights.items()}, folder / PROJECTOR_FILE)
    return str(folder / PROJECTOR_FILE)


class Contender:
    """One recipe with one method, trained a few steps at a time.

    Args:
        arguments: of the run.
        method: its name.
    """

    def __init__(self, arguments: TrainArguments, method: str) -> None:
        from llava_prumerge.profiling.timing import PeakMeter
        from llava_prumerge.train.assembly import build_trainer

        self.arguments, self.method = arguments, method
        self.trainer: LlavaTrainer = build_trainer(arguments)
        self.device: torch.device = self.trainer.args.device
        self.watch = step_watch(PeakMeter(self.device), self.device)
        self.trainer.add_callback(self.watch)
        self.rates: list[float] = []
        self.peak: float | None = None

    def turn(self, counted: bool) -> None:
        """Train the recipe's steps once; memory is read in rounds that are not counted, as reading it takes time."""
        self.watch.begin(meter=not counted)
        self.trainer.train()
        if counted:
            self.rates.append(self.arguments.global_batch / self.watch.seconds_per_step())
        else:
            self.peak = max(self.watch.peaks, default=None)

    def padding(self, batches: int, grouped: bool) -> dict[str, float]:
        """Padding share and tokens kept over some micro-batches, in the recipe's order or in a plain shuffle."""
        import torch

        from llava_prumerge.data.sampler import GroupedSampler
        from llava_prumerge.model.adapters import plain_model

        trainer, size = self.trainer, self.arguments.per_device_batch
        chunks = trainer.args.gradient_accumulation_steps
        settings = (self.arguments.seed, grouped, self.arguments.length_pool)
        order = GroupedSampler(trainer.train_dataset.lengths, size, chunks, *settings)
        chosen = list(itertools.islice(order, batches * size))
        model = plain_model(trainer.model).eval()
        model.reduction_stats()
        for start in range(0, len(chosen), size):
            batch = trainer.data_collator([trainer.train_dataset[at] for at in chosen[start : start + size]])
            batch.pop("ids")
            with torch.no_grad():  # without the head: logits are not needed
                model.model(**{name: value.to(self.device) for name, value in batch.items()}, use_cache=False)
        stats = model.reduction_stats()
        return {key: round(float(stats[key]), 4) for key in ("padding_share", "kept_mean", "kept_min", "kept_max")}


def step_watch(meter: Any, device: torch.device) -> Any:
    """A callback of transformers' Trainer that times optimiser steps, data loading included, and meters their memory."""
    import torch
    from transformers import TrainerCallback

    class StepWatch(TrainerCallback):
        def begin(self, meter: bool) -> None:
            self.ends: list[float] = []
            self.peaks: list[float] = []
            self.metered = meter

        def seconds_per_step(self) -> float:
            """Without the first step, which warms up."""
            return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)

        def on_step_begin(self, *given: Any, **more: Any) -> None:
            if self.metered:
                meter.start()

        def on_step_end(self, *given: Any, **more: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.ends.append(time.perf_counter())
            if self.metered and (peak := meter.stop()) is not None:
                self.peaks.append(peak)

    return StepWatch()


def contenders_of(recipe: str, given: argparse.Namespace, settings: list[str], folder: Path) -> list[Contender]:
    """All methods of one recipe, all tokens first."""
    from llava_prumerge.methods.registry import measured_methods

    planned = []
    projector: list[str] = []
    methods = [ALL, *(given.methods or measured_methods(Benchmark.TRAINING))]
    for method in methods:
        resolve(method)  # a wrong word is said before anything is built
    for method in methods:
        name = label_of(method)
        place = f"{Path(recipe).parent.name}-{Path(recipe).stem}-{name}"
        output = folder / re.sub(r"[^\w.+=-]+", "_", place)
        own = ["deepspeed=null", "save_steps=0", "report_to=none", "merge=false", "logging_steps=1"]
        own += [f"output_dir={output}", f"max_steps={given.steps}"]
        tokens = [recipe, f"method={method}", *settings, *own]
        if given.random_projector and not projector:
            projector = [f"projector={write_random_projector(load_arguments(tokens), folder)}"]
        arguments = load_arguments([*tokens, *projector])
        check_inputs(arguments)
        output.mkdir(parents=True, exist_ok=True)
        planned.append((arguments, name))
    return [Contender(arguments, method) for arguments, method in planned]


def measure(contenders: list[Contender], rounds: int, padding_batches: int) -> list[dict[str, Any]]:
    """Take turns; -> one row per method of one recipe"""
    from llava_prumerge.profiling.timing import ratios, spread

    for contender in contenders:
        contender.turn(counted=False)
    for turn in range(rounds):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            contender.turn(counted=True)
    rows = []
    for contender in contenders:
        row: dict[str, Any] = {
            "stage": contender.arguments.stage,
            "method": contender.method,
            "samples_per_second": spread(contender.rates),
            "gain": ratios(contender.rates, contenders[0].rates),
            "peak_mb": None if contender.peak is None else round(contender.peak / 1e6, 1),
        }
        if padding_batches:
            row["grouped"] = contender.padding(padding_batches, grouped=True)
            row["shuffled"] = contender.padding(padding_batches, grouped=False)
        rows.append(row)
        logger.info("%s", as_line(row))
    return rows


def as_line(row: dict[str, Any]) -> str:
    """One row for people."""
    speed, gain = row["samples_per_second"], row["gain"]
    parts = [
        f"{row['stage']:<5} {row['method']:<14} {speed['median']:7.2f} samples/s ({speed['q1']:.2f} to {speed['q3']:.2f})",
        f"gain {gain['median']:.2f} ({gain['q1']:.2f} to {gain['q3']:.2f})",
    ]
    if row["peak_mb"] is not None:
        parts.append(f"peak of a step {row['peak_mb']:.0f} MB")
    if "grouped" in row:
        parts.append(f"kept {row['grouped']['kept_mean']:.1f}")
        parts.append(
            f"padding {row['grouped']['padding_share']:.1%} grouped, {row['shuffled']['padding_share']:.1%} shuffled"
        )
    return ", ".join(parts)


def make_parser() -> Parser:
    """The options."""
    parser = Parser("llava_prumerge.train.speed", __doc__, settings=None)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="names, files or blocks (default: those of the paper)"
    )
    add_plugin_option(parser)
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps of a turn, the first of them not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--padding-batches", type=int, default=40, help="0: do not measure padding")
    parser.add_argument(
        "--random-projector", action="store_true", help="in place of stage 1's, which need not exist then"
    )
    parser.add_argument("--out", type=Path, help="write the JSON object there, too")
    return parser


@command()
def main(words: list[str]) -> None:
    """The command line."""
    given = make_parser().parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    if given.steps < 2 or given.rounds < 1 or given.padding_batches < 0:
        raise RecipeError("--steps is at least 2, --rounds at least 1, --padding-batches at least 0")
    hide_gpus()
    quieten_libraries()
    keep_one_gpu()
    choose_device()
    from llava_prumerge.profiling.machine import describe

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in given.recipes:
            contenders = contenders_of(recipe, given, given.settings, Path(folder))
            # The recipes' samples and order are alike: padding is measured with the first.
            rows += measure(contenders, given.rounds, 0 if rows else given.padding_batches)
            machine = describe(contenders[0].device)
    result = {
        "what": "training",
        "recipes": given.recipes,
        "settings": given.settings,
        "steps": given.steps,
        "rounds": given.rounds,
    }
    result |= {"projector": "random" if given.random_projector else "the recipe's", "rows": rows, "machine": machine}
    print(finish(result, given.out))


if __name__ == "__main__":
    sys.exit(main())
