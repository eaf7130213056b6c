"""Measured latency: tower, reducer, projector, prefill, decoding and the whole way, apart; peak memory; against floors.

    python -m llava_prumerge.efficiency latency --model pocket --batch 1 8
    python -m llava_prumerge.efficiency latency --layers 2 --blocks 2 --methods NAME=144 NAME=40 --out FILE.json
    python -m llava_prumerge.efficiency latency --read FILE.json --plot FILE.png

Weights are random and of the real shape: time does not depend on their values. The class attention is made so that an
adaptive method leaves the tokens asked for. Everything is measured in turns, after a warm-up, synchronised, by CUDA
events on a GPU; what is printed are medians with quartiles, and ratios of one and the same round. The matrix is the
first value of each list, and every other value in its place, one at a time.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from llava_prumerge.efficiency.errors import EfficiencyError, refuse
from llava_prumerge.efficiency.options import MODEL, positive
from llava_prumerge.efficiency.shapes import ModelShape, model_shape, named_shapes
from llava_prumerge.ground.files import write_json
from llava_prumerge.methods.cost import Benchmark
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.registry import build_reducer, measured_methods
from llava_prumerge.methods.resolve import resolve_part
from llava_prumerge.profiling.latency_report import as_text, draw, read_result
from llava_prumerge.profiling.machine import describe
from llava_prumerge.profiling.measurement import measure_cell
from llava_prumerge.profiling.parts import Subject, System, Workload, make_systems
from llava_prumerge.profiling.random_model import cut_down

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
TOKENS = re.compile(r"(?P<name>[^={}:]+)=(?P<tokens>[0-9]+)")


def parse_method(written: str) -> tuple[dict[str, Any], int | None]:
    """NAME=TOKENS, or a description whose settings say how many tokens are left. -> block, tokens"""
    if given := TOKENS.fullmatch(written):
        return resolve_part(given["name"], "vision"), int(given["tokens"])
    block = resolve_part(written, "vision")
    if not build_reducer(block).tokens_left(1024).exact:
        raise EfficiencyError(
            f"--methods {written!r}: each image decides how many tokens {block['name']} leaves; say NAME=TOKENS, as in "
            f"{block['name']}=40, or set its budget"
        )
    return block, None


def default_methods(shape: ModelShape) -> list[str]:
    """The methods of the paper, each with the tokens it is expected to leave of a tower's patches; the largest first."""
    found = []
    for name in measured_methods(Benchmark.LATENCY):
        found.append((build_reducer({"name": name}).tokens_left(shape.vision.patches).tokens, name))
    return [f"{name}={tokens}" for tokens, name in sorted(found, reverse=True)]


def settings_of(given: argparse.Namespace) -> list[Workload]:
    """The cells: the first value of each list, then every other one in its place."""
    lists = {name: getattr(given, name) for name in ("batch", "prompt", "answer", "dtype", "attn")}
    for name in ("batch", "prompt", "answer"):
        for value in lists[name]:
            positive(value, f"--{name}")
    for name, known in (("dtype", DTYPES), ("attn", ATTENTIONS)):
        for value in lists[name]:
            if value not in known:
                raise refuse(name, value, known)
    first = Workload(**{name: values[0] for name, values in lists.items()})
    others = [replace(first, **{name: value}) for name, values in lists.items() for value in values[1:]]
    cells = list(dict.fromkeys([first, *others]))
    return sorted(cells, key=lambda cell: (cell.dtype, cell.attn) != (first.dtype, first.attn))  # first model first


def measure(
    shape: ModelShape,
    systems: list[System],
    settings: list[Workload],
    device: torch.device,
    repeats: int,
    seconds: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure the matrix of one model. -> what was measured so far, after each cell

    Args:
        shape: of the model.
        systems: ways to run it.
        settings: cells.
        device: where.
        repeats: rounds of each cell.
        seconds: of the whole; cells that would begin after them are told as left out.
    """
    began = time.monotonic()
    result: dict[str, Any] = {
        "machine": describe(device),
        "model": {"name": shape.name, "vision": asdict(shape.vision), "language": asdict(shape.language)},
        "parameters": shape.parameters,
        "weights": "random",
        "systems": {system.name: system.tokens for system in systems},
        "cells": [],
        "left_out": [],
    }
    subject: Subject | None = None
    built: tuple[str, str] | None = None
    for at, setting in enumerate(settings):
        left = None if seconds is None else seconds - (time.monotonic() - began)
        if left is not None and left <= 0:
            result["left_out"].append({**asdict(setting), "why": f"the {seconds:.0f} s were over"})
            continue
        if built != (setting.dtype, setting.attn):
            subject = None  # two models need not fit into memory at once
            subject, built = build(shape, setting, device), (setting.dtype, setting.attn)
        share = None if left is None else 0.6 * left / (len(settings) - at)  # memory is measured after the times
        why = f"no model in {setting.dtype} with {setting.attn} can be built here"
        if subject is not None:
            why = ""
            try:
                result["cells"].append(measure_cell(subject, setting, systems, repeats, share))
            except torch.OutOfMemoryError:
                why = "out of memory"
        if why:
            result["left_out"].append({**asdict(setting), "why": why})
        result["seconds"] = round(time.monotonic() - began, 1)
        logger.info("%s: %d of %d cells, %.0f s", shape.name, at + 1, len(settings), result["seconds"])
        yield result
    yield result


def build(shape: ModelShape, setting: Workload, device: torch.device) -> Subject | None:
    """A setting's model; None where memory or a library it needs is not there."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return Subject(shape, DTYPES[setting.dtype], setting.attn, device)
    except torch.OutOfMemoryError:
        logger.warning("%s in %s: out of memory", shape.name, setting.dtype)
    except ImportError as error:  # flash-attn is not installed
        logger.warning("%s", error)
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    names = ", ".join(named_shapes())
    parser.add_argument(
        "--model", nargs="+", default=[MODEL], help=f"{names}, or paths of a config.json (default: {MODEL})"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="decoder layers, of the same width (default: all)")
    parser.add_argument("--blocks", type=int, metavar="N", help="tower blocks that run (default: all)")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME=TOKENS",
        help="or a block; vision reducers (default: those of the paper, with the tokens it says they leave)",
    )
    add_plugin_option(parser)
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="sequences (default: 1)")
    parser.add_argument("--prompt", nargs="+", type=int, default=[40], help="tokens of text (default: 40)")
    parser.add_argument("--answer", nargs="+", type=int, default=[16], help="tokens of the answer (default: 16)")
    parser.add_argument(
        "--dtype", nargs="+", help="float32, bfloat16, float16 (default: float16 on a GPU, else float32)"
    )
    parser.add_argument("--attn", nargs="+", default=["sdpa"], help=f"{', '.join(ATTENTIONS)} (default: sdpa)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="for the whole matrix; cells beyond are told as left out")
    parser.add_argument("--read", metavar="FILE.json", help="show what was measured before, measure nothing")
    parser.add_argument("--out", metavar="FILE.json", help="write the numbers there")
    parser.add_argument("--plot", metavar="FILE.png", help="draw them there")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def find_device(name: str | None) -> torch.device:
    """The device named, or a GPU where there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise EfficiencyError(f"--device {name!r} is not cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise EfficiencyError(f"--device {name}: there is no such device here; cpu is")
    return device


def measure_all(given: argparse.Namespace) -> dict[str, Any]:
    """The matrix of every model named, written to the file after each cell."""
    device = find_device(given.device)
    given.dtype = given.dtype or ["float16" if device.type == "cuda" else "float32"]
    settings = settings_of(given)
    positive(given.repeats, "--repeats")
    planned = []
    for name in given.model:
        shape = cut_down(model_shape(name), given.layers, given.blocks)
        methods = [parse_method(written) for written in given.methods or default_methods(shape)]
        planned.append((shape, make_systems(methods, shape.vision.side)))
    began, result = time.monotonic(), dict[str, Any](what="latency", runs=[])
    for at, (shape, systems) in enumerate(planned):
        seconds = given.seconds
        if seconds is not None:
            seconds = (seconds - (time.monotonic() - began)) / (len(planned) - at)
        for found in measure(shape, systems, settings, device, given.repeats, seconds):
            result["runs"][at:] = [found]
            write(given.out, result)
    return result


def write(out: str | None, result: dict[str, Any]) -> None:
    """Write a result file, so that a killed run leaves what it has measured."""
    if out:
        write_json(out, result, indent=1)


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    if given.read:
        result = read_result(Path(given.read))
    else:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logger.setLevel(logging.INFO)
        result = measure_all(given)
    if given.plot:
        draw(result, Path(given.plot))
    return json.dumps(result) if given.json else as_text(result)
