"""Options, text tables and result files that the commands of this folder share."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.shapes import ModelShape, model_shape, named_shapes
from llava_prumerge.efficiency.tokens import TEXT, TokenCounts, constant_counts, layered_counts, method_counts
from llava_prumerge.ground.command import Parser
from llava_prumerge.ground.files import write_json
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import read_settings

MODEL = "llava-1.5-7b"
"""Where none is named."""


def add_layout(parser: Parser, tokens: int | None = None) -> None:
    """--model, --method, --tokens, --per-layer, --text, --json and the method's settings.

    Args:
        parser: to add them to.
        tokens: visual tokens where none are given; None is all of them.
    """
    names = ", ".join(named_shapes())
    parser.add_argument("--model", default=MODEL, help=f"{names}, or the path of a config.json (default: %(default)s)")
    parser.add_argument(
        "--image",
        default="640x480",
        metavar="WxH",
        help="width and height in pixels of the image, for families whose tokens depend on it (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        help="a vision reducer, a decoder pruner or both: name, file or block; without it plain visual tokens",
    )
    add_plugin_option(parser)
    parser.add_argument(
        "--tokens",
        type=float,
        default=tokens,
        metavar="N",
        help="visual tokens, the method's budget; for a decoder pruner averaged over the layers (default: "
        + (f"{tokens})" if tokens else "all, or what the method says)"),
    )
    parser.add_argument("--per-layer", metavar="LxN,...", help="visual tokens by layers: 2x576,30x144")
    parser.add_argument(
        "--text", type=int, default=TEXT, metavar="N", help="tokens of the prompt (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.setting_names = None  # key=value: those of the method


def shape_of(given: argparse.Namespace) -> ModelShape:
    """The model asked for, and the image."""
    sides = given.image.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise EfficiencyError(f"--image {given.image!r} is not of the form WxH, such as 640x480")
    return model_shape(given.model, (int(sides[1]), int(sides[0])))


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """The method's settings."""
    if given.settings and not given.method:
        raise EfficiencyError(f"settings ({', '.join(given.settings)}) need --method")
    return read_settings(given.settings)


def counts_of(given: argparse.Namespace, shape: ModelShape) -> TokenCounts:
    """The tokens asked for."""
    settings = settings_of(given)
    if given.per_layer:
        if given.method:
            raise EfficiencyError("--per-layer says all that a method would; give one of both")
        return layered_counts(shape, given.per_layer, given.text)
    if given.method:
        return method_counts(shape, given.method, given.tokens, given.text, settings)
    tokens = given.tokens
    if tokens is not None and math.isfinite(tokens) and tokens != int(tokens):
        raise EfficiencyError(f"--tokens {tokens:g} is not a whole number; fractions are for decoder pruners")
    return constant_counts(shape, tokens if tokens is None or not math.isfinite(tokens) else int(tokens), given.text)


def positive(value: int, option: str) -> int:
    """A number that must be at least 1."""
    if value < 1:
        raise EfficiencyError(f"{option} {value} is not a whole number of at least 1")
    return value


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of text under each other: the first `left` columns to the left, the others to the right."""
    sizes = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(size) if at < left else cell.rjust(size) for at, (cell, size) in enumerate(zip(row, sizes))
        ).rstrip()
        for row in rows
    )


def amount(value: float) -> str:
    """A number of operations with four digits and T, G, M or k."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:#.4g} {unit}"
    return f"{value:.4g}"


def finish(result: Mapping[str, Any], out: Path | None) -> str:
    """Write a measurement to a JSON file where one is named. -> the last line to print, the result as one JSON object"""
    if out is not None:
        write_json(out, result, indent=1)
    return json.dumps(result)
