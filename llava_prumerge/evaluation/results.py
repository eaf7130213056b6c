"""Result files: one JSON per task with the score, what it was measured on, and what the method kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_prumerge.evaluation.benchmark import Benchmark, Score
from llava_prumerge.evaluation.records import EvaluationError, Record, read_json
from llava_prumerge.ground.files import write_text

Result = dict[str, Any]


def describe_score(task: Benchmark, score: Score | None) -> Result:
    """The scored part of a result; where nothing can be scored (VQAv2's server has the truth) it says so."""
    if score is None:
        return {"value": None, "note": task.not_scored}
    return {
        "value": score.headline if score.n else None,
        "metric": task.name_of(score),
        "interval_95": list(score.interval),
        "interval_rule": score.interval_rule,
        "n": score.n,
        "chance": score.chance,
        "chance_rule": score.chance_rule,
        "metrics": score.metrics,
        "part": score.part,
        "marks": [round(mark, 4) for mark in score.marks],
    }


def report(task: Benchmark, score: Score | None) -> dict[str, Any]:
    """What scoring prints."""
    if score is None:
        return {"task": task.name, "note": task.not_scored}
    rule = {"interval_95": list(score.interval), "interval_rule": score.interval_rule}
    metrics = {task.name_of(score) if name == task.headline else name: value for name, value in score.metrics.items()}
    return {"task": task.name, **metrics, "n": score.n, **rule}


def summarise_kept(records: Sequence[Record], placeholders: int) -> dict[str, float] | None:
    """Visual tokens that reached the language model, over all answers about an image; None where there was none.

    `mean` and `share` are of what enters the decoder; `equivalent` and `equivalent_share` are averaged over its layers,
    so that they count what a decoder pruner drops as well.

    Args:
        records: the answers with their metadata.
        placeholders: visual tokens of an image without reduction.
    """
    counts = [record["metadata"] for record in records if "kept" in record.get("metadata", {})]
    if not counts:
        return None
    mean = sum(count["kept"] for count in counts) / len(counts)
    equivalent = sum(count["equivalent"] for count in counts) / len(counts)
    return {
        "mean": mean,
        "min": min(count["kept_min"] for count in counts),
        "max": max(count["kept_max"] for count in counts),
        "share": 100 * mean / placeholders,
        "of": placeholders,
        "equivalent": equivalent,
        "equivalent_share": 100 * equivalent / placeholders,
        "images": len(counts),
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file; lists of numbers stay on one line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_results(folders: Sequence[Path], tasks: Sequence[str]) -> Iterator[tuple[Path, Result]]:
    """All result files below some folders, in the order of their paths."""
    for folder in folders:
        if not folder.is_dir():
            raise EvaluationError(f"{folder}: no such folder of results")
        for path in sorted(path for task in tasks for path in folder.rglob(f"{task}.json")):
            content = read_json(path)
            if isinstance(content, dict) and content.get("task") == path.stem and "row" in content:
                yield path, content
