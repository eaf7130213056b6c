"""What the latency command measured, as tables and as a plot."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.options import columns
from llava_prumerge.ground.palette import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from llava_prumerge.ground.reading import read_json_object

ORDER = ("tower", "reducer", "projector", "prefill", "decode", "end to end")
PART_COLOURS = {
    "tower": BLUE, "reducer": ORANGE, "projector": GREEN, "prefill": VERMILION, "decode": SKY, "rest": GREY
}  # fmt: skip
NOISY = 0.15
"""From this share of the median on, the distance of the quartiles is marked with a tilde."""


def read_result(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        EfficiencyError: there is none, or it is no result of this command.
    """
    if not path.is_file():
        raise EfficiencyError(f"{path}: there is no such file")
    result = read_json_object(path)
    if result.get("what") != "latency" or "runs" not in result:
        raise EfficiencyError(f"{path} is no result of the latency command")
    return result


def shown(values: dict[str, float], unit: str = "", digits: int = 3) -> str:
    """A median with its quartiles, marked where these lie far apart."""
    mark = "~" if values["q3"] - values["q1"] > NOISY * abs(values["median"]) else ""
    low, middle, high = (f"{values[key]:.{digits}g}" for key in ("q1", "median", "q3"))
    return f"{mark}{middle}{unit} ({low} to {high})"


def title_of(run: dict[str, Any]) -> str:
    """What was measured, where."""
    machine, vision, language = run["machine"], run["model"]["vision"], run["model"]["language"]
    place = f"{machine['device']}" + (f", {machine['threads']} threads" if machine["kind"] == "cpu" else "")
    return (
        f"{run['model']['name']} widths, {language['layers']} decoder layers, {vision['run']} tower blocks, random weights; "
        f"{place}; torch {machine['torch']}, transformers {machine['transformers']}; {machine['date']}"
    )


def label_of(cell: dict[str, Any]) -> str:
    """A cell's setting."""
    return f"batch {cell['batch']}, prompt {cell['prompt']}, answer {cell['answer']}, {cell['dtype']}, {cell['attn']}"


def as_text(result: dict[str, Any]) -> str:
    """All models, all cells."""
    lines = ["medians (quartiles); ~ marks quartiles further apart than 15%; decode is per token"]
    for run in result["runs"]:
        lines += ["", title_of(run)]
        for cell in run["cells"]:
            lines += ["", *cell_lines(cell)]
        lines += [f"left out: {label_of(row)}: {row['why']}" for row in run["left_out"]]
    return "\n".join(lines)


def cell_lines(cell: dict[str, Any]) -> list[str]:
    """One cell: its parts against their floors, its ratios, its memory."""
    peaks = cell["peaks"]
    lines = [
        label_of(cell),
        f"floors: {peaks['operations'] / 1e12:.3g} T operations/s, {peaks['bandwidth'] / 1e9:.3g} GB/s ({peaks['source']})",
    ]
    rows: list[tuple[str, ...]] = [("part", "system", "ms", "floor", "floor reached")]
    for row in sorted(cell["parts"], key=lambda row: ORDER.index(row["part"])):
        floor = f"{row['floor_ms']:.3g}" if "floor_ms" in row else ""
        share = f"{100 * row['share_of_floor']:.0f}%" if "floor_ms" in row else ""
        rows.append((row["part"], row["system"], shown(row["ms"]), floor, share))
    lines.append(columns(rows, left=2))
    rows = [("ratio", "measured", "by count", "reached")]
    for row in cell["ratios"]:
        promised = f"{row['promised']:.3g}" if "promised" in row else ""
        reached = f"{100 * row['reached']:.0f}%" if "reached" in row else ""
        rows.append((row["what"], shown(row["ratio"]), promised, reached))
    weights, *others = cell["memory"]
    held = ", ".join(f"{row['system']} {row['mb']:.0f} MB" for row in others if row["mb"] is not None)
    return [
        *lines,
        columns(rows),
        f"weights {weights['mb']:.0f} MB; peak memory beyond them: {held or 'not to be read here'}",
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of the parts that make up an answer, system by system, one panel per cell; whiskers: quartiles of the whole.

    Raises:
        EfficiencyError: nothing was measured, or matplotlib is not installed.
    """
    panels = [(run, cell) for run in result["runs"] for cell in run["cells"]]
    if not panels:
        raise EfficiencyError("nothing was measured, so there is nothing to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EfficiencyError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(8, 1.4 + 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (run, cell) in zip(axes, panels, strict=True):
        _draw_cell(axis, cell, list(run["systems"]))
        axis.set_title(
            f"{run['model']['name']}, {run['model']['language']['layers']} layers: {label_of(cell)}", fontsize=11
        )
    handles, labels = axes[0].get_legend_handles_labels()
    narrow = {"handlelength": 1.2, "columnspacing": 1.0}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, **narrow)
    figure.suptitle(textwrap.fill(title_of(result["runs"][0]), 95), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_cell(panel: Any, cell: dict[str, Any], systems: list[str]) -> None:
    """One panel: what is left of the whole way beside the parts is the splice, the sampling loop and Python."""
    found = {(row["part"], row["system"]): row for row in cell["parts"]}
    by_tokens = {(row["part"], row["tokens"]): row["ms"]["median"] for row in cell["parts"] if row["system"] != "stock"}
    whole = [found["end to end", system] for system in systems]
    left = [0.0] * len(systems)
    for part in (*ORDER[:-1], "rest"):
        widths = []
        for at, system in enumerate(systems):
            tokens = found["end to end", system]["tokens"]
            if part == "tower":
                width = found["tower", "all tokens"]["ms"]["median"]
            elif part == "reducer":
                width = found[part, system]["ms"]["median"] if (part, system) in found else 0.0
            elif part == "rest":
                width = max(0.0, whole[at]["ms"]["median"] - left[at])
            else:
                width = by_tokens[part, tokens] * (cell["answer"] - 1 if part == "decode" else 1)
            widths.append(width)
        panel.barh(systems, widths, left=left, label=part, color=PART_COLOURS[part])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    middles = [row["ms"]["median"] for row in whole]
    ends = [
        [row["ms"]["median"] - row["ms"]["q1"] for row in whole],
        [row["ms"]["q3"] - row["ms"]["median"] for row in whole],
    ]
    panel.errorbar(middles, systems, xerr=ends, fmt="none", ecolor="black", capsize=3)
    panel.invert_yaxis()
    panel.set_xlabel("ms")
    panel.tick_params(labelsize=11)
