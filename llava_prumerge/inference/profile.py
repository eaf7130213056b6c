"""Where the time of a question goes, for a checkpoint of any family: by part of the model, with and without a method.

    python -m llava_prumerge.inference.profile MODEL IMAGE... [--method METHOD ...] [--question TEXT] [--new-tokens 16]
        [--repeats 7] [--device cpu] [--dtype auto] [--plugin MODULE|FILE.py] [--out FILE.json]

The model is asked without a method and with each METHOD in turns, which are warmed up once; the table has medians in
milliseconds with their quartiles, and beside them the least that the part's operations can take on this machine
(roofline). `decode` is for each token after the first. Below it a sentence says what the method can save here, and what
it cannot. Without --method it is the checkpoint's own; where it has none, one must be named. Tokens are the image's own,
as its family cuts it. See `llava_prumerge.profiling.latency` for LLaVA-1.5 at any size without weights.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.files import write_json
from llava_prumerge.inference.verdict import Measured, verdict
from llava_prumerge.methods.labels import NONE, method_label
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import Block, resolve, stored_reduction

PARTS = ("pixels", "tower", "reducer", "projector", "prefill", "decode")
QUESTION = "What is in this picture?"


@dataclass(frozen=True)
class Profile:
    """One line of turns.

    Attributes:
        measured: its medians, tokens and floors.
        kept: visual tokens that reach the decoder.
        spread: by part (q1, median, q3) in seconds.
        rounds: the seconds of each whole answer.
    """

    measured: Measured
    kept: int
    spread: Mapping[str, tuple[float, float, float]]
    rounds: Sequence[float]


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("llava_prumerge.inference.profile", __doc__)
    parser.add_argument("model", help="a checkpoint of any served family")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="all of one question")
    parser.add_argument("--method", "--reduction", action="append", help="name, file or block; repeatable")
    add_plugin_option(parser)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--new-tokens", type=int, default=16, help="of each answer, exactly")
    parser.add_argument("--repeats", type=int, default=7)
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
    methods: Mapping[str, Block],
    new_tokens: int,
    repeats: int,
) -> dict[str, Profile]:
    """Ask with each method in turns.

    Args:
        model, processor: of `load_model`.
        question, images: asked each time.
        methods: blocks by label.
        new_tokens: of an answer, at least 2.
        repeats: answers that count; one before is not counted.
    """
    from llava_prumerge.data.images import read_image
    from llava_prumerge.inference.asking import ask
    from llava_prumerge.profiling.machine import find_peaks
    from llava_prumerge.profiling.timing import quartiles

    pictures = [read_image(image) for image in images]
    peaks = find_peaks(model.device, model.dtype)
    length: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    seconds: dict[str, list[dict[str, float]]] = {label: [] for label in methods}
    answers = {}
    for turn in range(repeats + 1):
        for label in list(methods)[:: 1 if turn % 2 else -1]:  # nobody always comes after the same one
            answer = answers[label] = ask(model, processor, question, images, reduction=methods[label], **length)
            each = dict(answer.seconds) | {"total": answer.total_seconds}
            if turn:  # the first one warms up
                seconds[label].append(each | {"decode": each["decode"] / (answer.new_tokens - 1)})
    found = {}
    for label, block in methods.items():
        answer, times = answers[label], seconds[label]
        spread = {part: quartiles([one[part] for one in times]) for part in (*PARTS, "total")}
        floors = _floors(model, processor, [picture.size[::-1] for picture in pictures], answer, peaks, block)
        told = Measured(
            {part: middle for part, (_, middle, _) in spread.items()},
            answer.new_tokens,
            answer.prompt_tokens,
            sum(image.full for image in answer.images),
            sum(image.equivalent for image in answer.images),
            floors,
        )
        found[label] = Profile(told, answer.kept, spread, [one["total"] for one in times])
    return found


def _floors(
    model: Any, processor: Any, sizes: Sequence[tuple[int, int]], answer: Any, peaks: Any, block: Block
) -> dict[str, float]:
    """Of the parts; {} where a model's operations cannot be counted."""
    from llava_prumerge.efficiency.errors import EfficiencyError
    from llava_prumerge.inference.floors import floors_of
    from llava_prumerge.methods.registry import build_reducer

    reducer = build_reducer(block.get("vision"))
    try:
        return floors_of(model, processor, sizes, answer, peaks, reducer is None or reducer.site == "projected")
    except EfficiencyError:
        return {}


def sentences(found: Mapping[str, Profile]) -> dict[str, str]:
    """What each method can save, by label."""
    from llava_prumerge.profiling.timing import quartiles

    none = found[NONE]
    return {
        label: verdict(
            label.split()[0],
            none.measured,
            one.measured,
            quartiles([before - after for before, after in zip(none.rounds, one.rounds, strict=True)]),
        )
        for label, one in found.items()
        if label != NONE
    }


def as_text(found: Mapping[str, Profile]) -> str:
    """A table, a line for each part and a column for each method, and the sentences."""
    from llava_prumerge.efficiency.options import columns

    head, tokens = ["ms: median (quartiles)"], ["visual tokens: kept, per layer"]
    for label, one in found.items():
        head += [label, "least"]
        tokens += [f"{one.kept} of {one.measured.full}, {one.measured.equivalent:.4g}", ""]
    rows = [head, tokens]
    for part in (*PARTS, "total"):
        row = [{"decode": "decode, each token", "total": "whole answer"}.get(part, part)]
        for one in found.values():
            low, middle, high = (1e3 * value for value in one.spread[part])
            floor = one.measured.floors.get(part)
            row += [f"{middle:.2f} ({low:.2f} to {high:.2f})", "" if floor is None else f"{1e3 * floor:.2f}"]
        rows.append(row)
    return "\n".join([columns(rows), "", *sentences(found).values()])


@command()
def main(words: list[str]) -> None:
    """The command."""
    given = parse(words)
    own = stored_reduction(given.model)
    written = given.method or ([own] if own else [])
    blocks = [resolve(one) or {} for one in written]
    methods: dict[str, Block] = {NONE: {}} | {method_label(block): block for block in blocks}
    missing = next((image for image in given.images if not Path(image).is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file")
    if not written:
        raise InputError(f"{given.model} has no method of its own: name one with --method; `methods` lists them")
    from llava_prumerge.model.loading import load_model

    model, processor = load_model(given.model, None, given.dtype, given.device)
    found = measure(model, processor, given.question, given.images, methods, given.new_tokens, given.repeats)
    print(as_text(found))
    if given.out is not None:
        keys = ("model", "images", "question", "new_tokens", "repeats", "dtype")
        told = {"what": "profile", **{key: getattr(given, key) for key in keys}, "device": str(model.device)}
        content = {label: asdict(one) for label, one in found.items()}
        write_json(given.out, {**told, "methods": content, "sentences": sentences(found)}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
