"""Results measured on a GPU in one JSON, one page and one plot.

    python -m llava_prumerge.efficiency collect-gpu FILE.json ... --out docs/results/efficiency_gpu

The files are what `scripts/bench_gpu.sh` wrote: of `latency` and of `profiling.kernels`, from one card or several. Each
row names its card; no ratio is made of two cards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.profiling.collect import Target, of_cell, table
from llava_prumerge.profiling.kernels import as_text as kernels_text
from llava_prumerge.profiling.latency_report import as_text, draw, shown
from llava_prumerge.profiling.parts import ALL, STOCK

PAGE = """# Efficiency, measured on a GPU

Written by `python -m llava_prumerge.efficiency collect-gpu` from what `scripts/bench_gpu.sh` measured. The weights are
random and of the real shape. Every number is a median with its quartiles, of runs that took turns on one card in one
process; `~` marks quartiles further apart than 15% of their median. What the parts mean is in
[efficiency](../efficiency.md).

{machines}

## Targets

{targets}

## From the image to the first token, and to the last

*First token* is the sum of the medians of tower, reducer, projector and prefill. *Images/s* are of the whole answer, one
image and one question each.

{answers}

## Kernels, gaps and waits

*Busy* is the share of a part's time in which the GPU computes; the rest it waits for the host to launch the next kernel.
*Host waits* are the places at which the host waits for the GPU; decoding is counted over all its steps.

{kernels}

## Everything

{latency}
"""


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """Result files.

    Raises:
        EfficiencyError: a file is missing, or holds neither a latency nor a kernels result.
    """
    found = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EfficiencyError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise EfficiencyError(f"{path} is not JSON: {error}") from error
        if not isinstance(result, dict) or result.get("what") not in ("latency", "kernels"):
            raise EfficiencyError(f"{path}: neither `latency` nor `profiling.kernels` wrote this file")
        found.append(result)
    return found


def machines(results: list[dict[str, Any]]) -> list[str]:
    """Each card with its software, once."""
    found = []
    for result in results:
        for machine in [run["machine"] for run in result["runs"]] if "runs" in result else [result["machine"]]:
            told = (
                f"{machine['device']}; torch {machine['torch']}, CUDA {machine['cuda']}, transformers "
                f"{machine['transformers']}, Python {machine['python']}, {machine['cores']} cores; {machine['date'][:10]}."
            )
            if told not in found:
                found.append(told)
    return found


def cells(results: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(run, cell) of every latency result."""
    for result in results:
        for run in result.get("runs", []):
            for cell in run["cells"]:
                yield run, cell


def place(run: dict[str, Any], cell: dict[str, Any]) -> str:
    """Where a number is from."""
    card = run["machine"]["device"].removeprefix("NVIDIA ")
    return f"{run['model']['name']}, batch {cell['batch']}, prompt {cell['prompt']}, {cell['dtype']}, {cell['attn']}, {card}"


def targets(results: list[dict[str, Any]]) -> Iterator[tuple[str, Target]]:
    """What was asked of a GPU, setting by setting: reduction, prefill against the count and the floor, decoding."""
    for run, cell in cells(results):
        where = place(run, cell)
        for row in cell["ratios"]:
            if row["what"].startswith("reducer"):
                share = {key: 100 * row["ratio"][key] for key in ("q1", "median", "q3")}
                name = row["what"].removeprefix("reducer, share of the tower: ")
                yield where, Target(f"reduction step, % of the vision tower: {name}", share, 2.0, least=False)
        for target in of_cell("", cell, promised=True):
            yield where, target._replace(name=target.name.removesuffix(" ()"))
        for row in cell["parts"]:
            if row["part"] == "prefill" and not row["system"].startswith(STOCK):
                reached = {key: row["floor_ms"] / row["ms"][key] for key in ("q1", "median", "q3")}
                worst_first = {"q1": reached["q3"], "median": reached["median"], "q3": reached["q1"]}
                yield where, Target(f"prefill, share of its floor: {row['system']}", worst_first, 0.7, least=True)


def answers(results: list[dict[str, Any]]) -> str:
    """Per cell and system: first token, whole answer, images per second, gain over the stock model, memory."""
    rows = []
    for run, cell in cells(results):
        times = {(row["part"], row["system"]): row["ms"] for row in cell["parts"]}
        by_tokens = {(row["part"], row["tokens"]): row["ms"] for row in cell["parts"] if STOCK not in row["system"]}
        memory = {row["system"]: row["mb"] for row in cell["memory"]}
        gains = {row["what"]: row["ratio"] for row in cell["ratios"]}
        for system in (STOCK, *run["systems"]):
            whole = times["end to end", system]
            first = ""
            if system != STOCK:
                parts = [times["tower", ALL], times.get(("reducer", system), {"median": 0.0})]
                parts += [by_tokens[part, run["systems"][system]] for part in ("projector", "prefill")]
                first = f"{sum(part['median'] for part in parts):.3g}"
            gain = gains.get(f"end to end, gain of {system} over {STOCK}")
            held = memory.get(system)
            rows.append(
                (
                    f"{run['model']['name']}, batch {cell['batch']}, prompt {cell['prompt']}, answer {cell['answer']}, "
                    f"{cell['dtype']}, {cell['attn']}",
                    system,
                    first,
                    shown(whole),
                    f"{1e3 * cell['batch'] / whole['median']:.3g}",
                    shown(gain) if gain else "",
                    "" if held is None else f"{held:.0f}",
                )
            )
    head = ("setting", "system", "first token (ms)", "whole answer (ms)", "images/s", "gain over stock", "memory (MB)")
    return table(head, rows)


def page(results: list[dict[str, Any]]) -> str:
    """The whole page."""
    sign = {True: "at least", False: "at most"}
    rows = [
        (where, item.name, shown(item.ratio), f"{sign[item.least]} {item.bound:g}", item.verdict())
        for where, item in targets(results)
    ]
    latency = [result for result in results if result["what"] == "latency"]
    kernels = [result for result in results if result["what"] == "kernels"]
    told = [
        f"{result['model']}, {result['dtype']}, prompt {result['prompt']}, {result['machine']['device']}:\n\n"
        f"```\n{kernels_text(result)}\n```"
        for result in kernels
    ]
    return PAGE.format(
        machines="\n".join(f"- {line}" for line in machines(results)),
        targets=table(("setting", "what", "measured (quartiles)", "target", ""), rows),
        answers=answers(latency),
        kernels="\n\n".join(told) or "Not measured.",
        latency="\n\n".join(f"```\n{as_text(result)}\n```" for result in latency) or "Not measured.",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("files", nargs="+", type=Path, help="results of `latency` and of `profiling.kernels`")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="of the .json, .md and .png to write")


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    results = read(given.files)
    prefix = Path(given.out)
    write_json(prefix.with_suffix(".json"), {"what": "gpu", "results": results}, indent=1)
    write_text(prefix.with_suffix(".md"), page(results))
    drawn = {"runs": [run for result in results for run in result.get("runs", [])]}
    if any(run["cells"] for run in drawn["runs"]):
        draw(drawn, prefix.with_suffix(".png"))
    verdicts = [
        f"{item.verdict():<12} {shown(item.ratio):<28} {item.name} ({where})" for where, item in targets(results)
    ]
    return "\n".join([*verdicts, f"written: {prefix}.json, .md, .png"])
