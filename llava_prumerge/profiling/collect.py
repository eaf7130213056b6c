"""The results of the CPU matrix in one JSON, one page and one plot: `make bench` runs this last.

    python -m llava_prumerge.efficiency collect FOLDER --out docs/results/efficiency_cpu

FOLDER holds what the steps of scripts/bench_cpu.sh wrote. Every target is set beside what was measured: it is met where
the median meets it, and met clearly where the quartile on the wrong side does, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.ground.files import write_json, write_text
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.methods.cost import Benchmark
from llava_prumerge.methods.registry import measured_methods
from llava_prumerge.profiling.latency_report import as_text, draw, shown

PAGE = """# Efficiency, measured on CPU

Written by `make bench` (`scripts/bench_cpu.sh`); every number is a ratio, or a time, of runs that took turns. `~` marks
quartiles further apart than 15% of their median: such a machine was not quiet. What the parts mean, and how each figure
is repeated, is in [efficiency](../efficiency.md).

{machine}

## Targets

{targets}

## Evaluation

{throughput}

## Training

{training}

## The reduction step beside CLIP ViT-L/14-336

{reducer}

## A pruner's own work beside the decoder layer before it

{pruner}

## Latency by part

{latency}
"""


class Target(NamedTuple):
    """A claim and its measurement: `bound` is the most, or with `least` the least, that the ratio may be."""

    name: str
    ratio: dict[str, float]
    bound: float
    least: bool

    def verdict(self) -> str:
        """met, met clearly, or missed."""
        worse = self.ratio["q1" if self.least else "q3"]
        sides = [
            (value >= self.bound) if self.least else (value <= self.bound) for value in (self.ratio["median"], worse)
        ]
        return "missed" if not sides[0] else "met clearly" if sides[1] else "met"


def read(folder: Path) -> dict[str, Any]:
    """Every result of a folder by the name of its step.

    Raises:
        EfficiencyError: there is none, or a file is no JSON object.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".partial.json"):
            continue
        found[path.stem] = read_json_object(path)
    if not found:
        raise EfficiencyError(f"{folder} holds no results; scripts/bench_cpu.sh writes them")
    return found


def is_of(name: str, benchmark: Benchmark) -> bool:
    """Whether a row is of a method that a target was set for, with whatever settings its name tells behind it."""
    return name.startswith(tuple(measured_methods(benchmark)))


def targets(results: dict[str, Any]) -> Iterator[Target]:
    """What the project set out to reach, as far as it was measured here."""
    for row in results.get("reducer", {}).get("rows", []):
        if is_of(row["method"], Benchmark.REDUCTION):
            told = f"{row['method']} {row['kept_mean']:.0f}, batch {row['batch']}"
            yield Target(f"reduction step, % of the vision tower: {told}", row["share"], 2.0, least=False)
    for row in results.get("pruner", {}).get("rows", []):
        told = f"{row['method']} ({row['model']}, batch {row['batch']})"
        yield Target(f"pruner's own work, % of a decoder layer: {told}", row["share"], 10.0, least=False)
    for step in ("llava", "pocket"):
        for run in results.get(step, {}).get("runs", []):
            for cell in run["cells"]:
                yield from of_cell(f"{run['model']['name']}, batch {cell['batch']}", cell, promised=step == "llava")
    for row in results.get("throughput", {}).get("rows", []):
        if is_of(row["name"], Benchmark.THROUGHPUT):
            yield Target(f"evaluation, times the stock loop: {row['name']}", row["times_the_loop"], 4.0, least=True)
    for row in results.get("throughput", {}).get("rows", []):
        if "flips" in row:
            flips = dict.fromkeys(("q1", "median", "q3"), row["flips"])
            yield Target(f"evaluation, answers that batching changes: {row['name']}", flips, 0, least=False)
    for row in results.get("training", {}).get("rows", []):
        if is_of(row["method"], Benchmark.PADDING) and "grouped" in row:
            share = dict.fromkeys(("q1", "median", "q3"), 100 * row["grouped"]["padding_share"])
            yield Target(f"training ({row['stage']}), % padding with grouping: {row['method']}", share, 10, least=False)


def of_cell(place: str, cell: dict[str, Any], promised: bool) -> Iterator[Target]:
    """A latency cell's targets: decoding beside the stock model, and with `promised` the prefill's gain beside the count's."""
    for row in cell["ratios"]:
        if row["what"].startswith("decode"):
            yield Target(
                f"{row['what'].replace(', cost', ', times the stock step')} ({place})", row["ratio"], 1.05, least=False
            )
        if promised and "reached" in row:
            part = {key: row["ratio"][key] / row["promised"] for key in ("q1", "median", "q3")}
            yield Target(
                f"{row['what'].replace(', gain', ', share of the FLOPs ratio')} ({place})", part, 0.85, least=True
            )


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(results: dict[str, Any]) -> str:
    """The whole page; what was not measured is said to be missing."""
    sign = {True: "at least", False: "at most"}
    rows = [
        (item.name, shown(item.ratio), f"{sign[item.least]} {item.bound:g}", item.verdict())
        for item in targets(results)
    ]
    machine = next((found["machine"] for found in results.values() if "machine" in found), None)
    told = (
        ""
        if machine is None
        else (
            f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores; torch {machine['torch']}, "
            f"transformers {machine['transformers']}; {machine['date']}, load {machine['load']}."
        )
    )
    latency = [f"```\n{as_text(results[step])}\n```" for step in ("llava", "pocket") if step in results]
    missing = "Not measured."
    others = sorted(set(results) - {"llava", "pocket", "reducer", "pruner", "throughput", "training"})
    told_others = "".join(f"\n\n`{name}`: in the JSON file beside this page." for name in others)
    return PAGE.format(
        machine=told,
        targets=table(("what", "measured (quartiles)", "target", ""), rows),
        throughput=_throughput(results["throughput"]) if "throughput" in results else missing,
        training=_training(results["training"]) if "training" in results else missing,
        reducer=_reducer(results["reducer"]) if "reducer" in results else missing,
        pruner=_pruner(results["pruner"]) if "pruner" in results else missing,
        latency=("\n\n".join(latency) or missing) + told_others,
    )


def _throughput(result: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            shown(row["images_per_second"]),
            shown(row["times_the_loop"]),
            f"{row['flips']} (against {row['compared_with']})" if "flips" in row else "",
        )
        for row in result["rows"]
    ]
    note = f"{result['questions']} questions of pocket {result['task']}, batches of {result['batch_size']}, {result['dtype']}, {result['projector']} projector."
    return f"{note}\n\n" + table(("", "images/s", "times the loop", "flips"), rows)


def _training(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        grouped, shuffled = row.get("grouped", {}), row.get("shuffled", {})
        rows.append(
            (
                row["stage"],
                row["method"],
                shown(row["samples_per_second"]),
                shown(row["gain"]),
                "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
                f"{grouped['kept_mean']:.1f}" if grouped else "",
                f"{grouped['padding_share']:.1%} / {shuffled['padding_share']:.1%}" if grouped else "",
            )
        )
    head = ("stage", "method", "samples/s", "gain", "peak of a step (MB)", "kept", "padding, grouped / shuffled")
    return f"Recipes {', '.join(result['recipes'])}, {result['projector']} projector.\n\n" + table(head, rows)


def _reducer(result: dict[str, Any]) -> str:
    rows = [
        (
            row["method"],
            str(row["batch"]),
            f"{row['kept_mean']:.0f}",
            shown(row["reduction_ms"]),
            shown(row["clip_ms"]),
            shown(row["share"], "%"),
        )
        for row in result["rows"]
    ]
    return table(("method", "batch", "kept", "reduction (ms)", "tower (ms)", "share"), rows)


def _pruner(result: dict[str, Any]) -> str:
    rows = [
        (
            row["model"],
            str(row["batch"]),
            row["method"],
            f"{row['before_layer']}: {row['tokens'][0]} to {row['tokens'][1]}",
            shown(row["own_ms"]),
            shown(row["layer_ms"]),
            shown(row["share"], "%"),
        )
        for row in result["rows"]
    ]
    return table(("model", "batch", "method", "before layer, tokens", "own (ms)", "layer (ms)", "share"), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", help="with the results of the steps")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="of the .json, .md and .png to write")


def run(given: argparse.Namespace) -> str:
    """The command. -> what to print"""
    results = read(Path(given.folder))
    prefix = Path(given.out)
    write_json(prefix.with_suffix(".json"), results, indent=1)
    write_text(prefix.with_suffix(".md"), page(results))
    drawn = {"runs": [run for step in ("llava", "pocket") for run in results.get(step, {}).get("runs", [])]}
    if any(run["cells"] for run in drawn["runs"]):
        draw(drawn, prefix.with_suffix(".png"))
    verdicts = [f"{item.verdict():<12} {shown(item.ratio):<28} {item.name}" for item in targets(results)]
    return "\n".join([*verdicts, f"written: {prefix}.json, .md, .png"])
