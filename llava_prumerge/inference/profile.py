"""Where the time of a question goes, for a checkpoint of any family: by part of the model, with and without methods.

    python -m llava_prumerge.inference.profile --model FOLDER IMAGE... [--methods none METHOD...]
        [--question TEXT] [--new-tokens 16] [--repeats 5] [--device cpu] [--dtype auto] [--out FILE.json]

Methods take turns, and each is asked once before it counts; the table has medians in milliseconds. `decode` is for each
token after the first. Tokens are the image's own, as its family cuts it. See `llava_prumerge.profiling.latency` for times
of LLaVA-1.5's parts at any size without weights.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.files import write_json
from llava_prumerge.methods.labels import method_label
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import resolve

PARTS = ("pixels", "tower", "reducer", "projector", "prefill", "decode")
QUESTION = "What is in this picture?"


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("llava_prumerge.inference.profile", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="all of one question")
    parser.add_argument("--model", required=True, help="a checkpoint of any served family")
    parser.add_argument("--methods", nargs="+", default=["none"], metavar="METHOD", help="names, files or blocks")
    add_plugin_option(parser)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--new-tokens", type=int, default=16, help="of each answer, exactly")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, help="also write the result to this JSON file")
    given = parser.parse_args(words)
    for name, least in (("new_tokens", 2), ("repeats", 1)):
        if getattr(given, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(given, name)} is not {least} or more")
    return given


def measure(
    model: Any,
    processor: Any,
    question: str,
    images: Sequence[Any],
    methods: Mapping[str, dict[str, Any]],
    new_tokens: int,
    repeats: int,
) -> dict[str, dict[str, Any]]:
    """Seconds by part, and tokens, of each method.

    Args:
        model, processor: of `load_model`.
        question, images: asked each time.
        methods: blocks by label.
        new_tokens: of an answer, at least 2.
        repeats: answers that count.
    """
    from llava_prumerge.inference.asking import ask

    length: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    seconds: dict[str, list[dict[str, float]]] = {label: [] for label in methods}
    found: dict[str, dict[str, Any]] = {}
    for turn in range(repeats + 1):
        for label, block in methods.items():
            answer = ask(model, processor, question, images, reduction=block, **length)
            if turn:  # the first one warms up
                each = dict(answer.seconds) | {"total": answer.total_seconds}
                seconds[label].append(each | {"decode": each["decode"] / (answer.new_tokens - 1)})
            found[label] = {
                "full": sum(image.full for image in answer.images),
                "kept": answer.kept,
                "equivalent": sum(image.equivalent for image in answer.images),
                "prompt": answer.prompt_tokens,
            }
    for label, times in seconds.items():
        found[label]["seconds"] = {part: statistics.median(one[part] for one in times) for part in (*PARTS, "total")}
    return found


def as_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A table, a line for each method."""
    from llava_prumerge.efficiency.options import columns

    rows: list[Sequence[str]] = [("ms", "kept", "of", "equivalent", *PARTS[:-1], "decode/token", "total")]
    for label, told in found.items():
        counts = (str(told["kept"]), str(told["full"]), f"{told['equivalent']:.4g}")
        rows.append((label, *counts, *(f"{1e3 * told['seconds'][part]:.2f}" for part in (*PARTS, "total"))))
    return columns(rows)


@command()
def main(words: list[str]) -> None:
    """The command."""
    given = parse(words)
    blocks = [resolve(written) or {} for written in given.methods]
    methods = {method_label(block): block for block in blocks}
    missing = next((image for image in given.images if not Path(image).is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file")
    from llava_prumerge.model.loading import load_model

    model, processor = load_model(given.model, {}, given.dtype, given.device)
    found = measure(model, processor, given.question, given.images, methods, given.new_tokens, given.repeats)
    print(as_text(found))
    if given.out is not None:
        settings = {
            key: getattr(given, key) for key in ("model", "images", "question", "new_tokens", "repeats", "dtype")
        }
        write_json(given.out, {"what": "profile", **settings, "device": str(model.device), "methods": found}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
