"""What the searches' command lines share. Torch is loaded by what a search does, not by its help."""

# ruff: noqa: T201  (entry points talk to people)

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from llava_prumerge.ground.command import Main, Parser, at_least, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.plugins import add_plugin_option

ROWS = ("last", "text")
"""Rows of the prompt that rank: the last token's, or all of the text that sees an image."""
SCORES = ("agreement", "kl", "loss")
"""What is compared with the full model."""


class SearchError(InputError):
    """A search that cannot be run as asked, or that finds nothing; the message is one line for the person who asked."""


def search_parser(module: str, description: str | None, out: Path | None, samples: int, method: bool = False) -> Parser:
    """The command line that all searches share: a model, questions, and a file to write.

    Args:
        module: the command's, below `llava_prumerge.search`.
        description: of the command.
        out, samples: what the command takes where nothing is given.
        method: it takes `--method`.
    """
    parser = Parser(f"llava_prumerge.search.{module}", description)
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", type=Path, required=True, help="LLaVA's JSONL: image, text")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, default=out, help="the file to write")
    add_plugin_option(parser)
    if method:
        parser.add_argument("--method", help="the pruner to search for, where several can be searched so")
    parser.add_argument(
        "--trusted", action="append", default=[], metavar="DIR", help="links may lead to here; repeatable"
    )
    parser.add_argument(
        "--limit", "--samples", dest="samples", type=int, default=samples, help="questions to measure on"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=4)
    parser.add_argument("--template", default="vicuna_v1")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device")
    return parser


def run_search(search: Callable[[argparse.Namespace], str], parse: Callable[[list[str]], argparse.Namespace]) -> Main:
    """The entry point of a search, which says what it found."""

    @command()
    def main(words: list[str]) -> None:
        print(search(parse(words)))

    return main
