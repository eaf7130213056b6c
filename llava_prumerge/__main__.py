"""The command `llava-prumerge`: everything that can be done, by name."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from llava_prumerge import __version__
from llava_prumerge.ground.command import called_as, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known

NAME = "llava-prumerge"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as it is called.
        module: below `llava_prumerge`; its `main` takes the words, and it is imported when it is called.
        summary: a line of the map.
        word: comes before the words that are given, where the module has several commands.
        others: words of that place that are taken as they are.
    """

    name: str
    module: str
    summary: str
    word: str = ""
    others: tuple[str, ...] = ()


GROUPS: dict[str, tuple[Command, ...]] = {
    "Look at a model": (
        Command(
            "methods", "methods.__main__", "the methods of token reduction, their settings, and the files that ship"
        ),
        Command("chat", "inference.chat", "ask in the terminal: several turns and images, answers word by word"),
        Command("viz", "viz.__main__", "draw what a method keeps of images"),
        Command(
            "serve", "serving.__main__", "an OpenAI-compatible server: transformers' own, with a model and its method"
        ),
        Command("demo", "viz.demo", "a page on this machine: ask about an image, see what is kept"),
    ),
    "Train": (
        Command(
            "prepare", "data.prepare", "fetch the public data sets, and check records before hours are spent on them"
        ),
        Command("train", "train.run", "one stage: pretrain, finetune, finetune_lora, finetune_qlora, or a recipe file"),
    ),
    "Evaluate": (
        Command(
            "evaluate",
            "evaluation.run",
            "answer the questions of benchmarks, and score the answers",
            "run",
            ("generate",),
        ),
        Command("score", "evaluation.run", "score an answer file that is there", "score"),
        Command("compare", "evaluation.compare", "all results side by side, with paired differences"),
        Command("tables", "evaluation.tables", "the paper's tables from results"),
    ),
    "Reduce": (
        Command("search", "search.__main__", "find a method's settings on calibration questions"),
        Command("efficiency", "efficiency.__main__", "FLOPs, least times and memory, computed; latency, measured"),
        Command(
            "profile",
            "inference.profile",
            "where a question's time goes on your model and image, and what a method can save of it",
        ),
        Command("throughput", "evaluation.throughput", "images per second of an evaluation, with and without a method"),
        Command("training-speed", "train.speed", "steps per second of a training, with and without a method"),
        Command("footprint", "data.footprint", "memory that a record file takes on each rank"),
    ),
    "Publish": (
        Command("convert", "model.checkpoints.__main__", "checkpoints from one layout to another", "convert"),
        Command("release", "hub.__main__", "a model with its card, to the Hub"),
    ),
}
COMMANDS = {one.name: one for group in GROUPS.values() for one in group}


def overview() -> str:
    """The map."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"usage: {NAME} COMMAND [ARGUMENTS]", "", "LLaVA-1.5 with visual-token reduction."]
    for title, group in GROUPS.items():
        lines += ["", title, *(f"  {one.name:<{width}}{one.summary}" for one in group)]
    lines += [
        "",
        f"`{NAME} COMMAND --help` lists a command's arguments. `--option value` and `option=value` mean the same, and settings",
        "are written `key=value`. Recipes and methods are named, or are the paths of files. Exit status: 0 done, 2 wrong",
        "input, 1 it could not go on. Each command is also a module: `python -m llava_prumerge.viz`.",
    ]
    return "\n".join(lines)


@command()
def main(words: list[str]) -> int:
    """Run the command that the first word names."""
    first = words[0] if words else "--help"
    if first in ("--help", "-h", "help"):
        print(overview())
        return 0
    if first == "--version":
        print(f"{NAME} {__version__}")
        return 0
    if first not in COMMANDS:
        raise InputError(not_known("command", first, COMMANDS))
    chosen, rest = COMMANDS[first], words[1:]
    if chosen.word and not (rest and rest[0] in (chosen.word, *chosen.others)):
        rest = [chosen.word, *rest]
    with called_as(f"{NAME} {chosen.name}", chosen.word):
        module = importlib.import_module(f"llava_prumerge.{chosen.module}")
        return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
