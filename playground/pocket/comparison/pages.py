"""The method comparison as Markdown: one table per budget, the blank rows with their reasons, and what ATP-LLaVA kept."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from playground.pocket.comparison.rows import BUDGETS, OWN_RULE, REFERENCE, TEXT_ONLY

Line = dict[str, Any]


def page(content: dict[str, Any]) -> str:
    """The whole file."""
    lines, patches = content["rows"], content["patches"]
    head = [line for line in lines if line["table"] == ""]
    parts = [introduction(content)]
    for budget in BUDGETS:
        part = [line for line in lines if line["table"] == budget]
        parts.append(f"## {budget} of {patches} equivalent tokens ({100 * budget / patches:.3g}%)\n")
        parts += [table(content, [*head, *part]), blanks(part), seeds(part)]
    own = [line for line in lines if line["table"] == OWN_RULE]
    parts += ["## By their own rules\n", "Training-free and without a budget: what each paper's rule costs here.\n"]
    parts += [table(content, [*head, *own]), adaptive(content)]
    return "\n".join(part for part in parts if part)


def introduction(content: dict[str, Any]) -> str:
    """What was done, and how to read it."""
    asked = ", ".join(f"{content['tasks'][task]} {number}" for task, number in content["questions"].items())
    seeds = content["seeds"]
    return f"""# All methods on one table per budget

Command: `{content["command"]}`. Revision: {content["revision"]} (of the evaluations: {", ".join(content["revisions_of_results"])}).
Seeds: questions {seeds["questions"]}, training {seeds["training"]}, random baseline {", ".join(map(str, seeds["random"]))}, searches {seeds["search"]}.
torch {content["versions"]["torch"]}, transformers {content["versions"]["transformers"]}. This file is written by the command.

Pocket world: a small LLaVA on generated scenes, {content["patches"]} patches, 6 decoder layers. What holds here need not hold at 7B.

- *Equivalent tokens* are visual tokens averaged over the decoder's layers; *kept* is what an image enters the decoder with.
- *Score*: mean over the benchmarks ({asked} questions; for POPE accuracy, not F1) of the mean mark in percent, with its 95% interval over questions.
- *Difference*: from the full model on the same questions, paired, with its 95% interval; **bold** where that excludes 0.
- *Prefill*: CPU time of one thread per image in batches of 16, in percent of the full model's in turns with it; tower, reducer and pruner included.
- All rows use the weights of the full model (training-free) but those marked *trained*.
- A method that cannot cost so little stays blank, with its reason below the table.

![Score against equivalent tokens](methods.png)
"""


def table(content: dict[str, Any], lines: list[Line]) -> str:
    """One table, the references first and the others by falling score, blank ones last."""
    first = [line for line in lines if line["name"] in (REFERENCE, TEXT_ONLY)]
    rest = [line for line in lines if line not in first]
    rest.sort(key=lambda line: (line["score"] is None, -(line["score"] or 0.0)))
    titles = [content["tasks"][task] for task in content["questions"]]
    head = ["method", "settings", "kept", "equivalent", "score", "difference", *titles, "prefill"]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *(cells(content, line) for line in [*first, *rest])]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def cells(content: dict[str, Any], line: Line) -> list[str]:
    """One row."""
    name = f"{line['name']} (trained)" if line["trained"] else line["name"]
    tasks = line["tasks"] or {}
    scores = [number(tasks.get(task)) for task in content["questions"]]
    difference = spread(line["difference"], line["difference_half"], "+")
    if line["difference"] is not None and abs(line["difference"]) > line["difference_half"]:
        difference = f"**{difference}**"
    if line["name"] == REFERENCE:
        difference = ""
    share = line["share_of_full"]
    return [
        name,
        line["settings"],
        number(line["kept"]),
        number(line["equivalent"], 2),
        spread(line["score"], line["half"]),
        difference,
        *scores,
        "" if share is None else f"{share:.0f}%",
    ]


def number(value: float | None, places: int = 1) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{places}f}"


def spread(value: float | None, half: float | None, sign: str = "") -> str:
    """A number with half of its interval, or nothing."""
    return "" if value is None else f"{value:{sign}.1f} ± {half:.1f}"


def blanks(lines: list[Line]) -> str:
    """Why rows are blank, equal reasons together."""
    reasons = defaultdict(list)
    for line in lines:
        if line["why"]:
            reasons[line["why"]].append(line["name"])
    if not reasons:
        return ""
    return "Blank:\n\n" + "\n".join(f"- {', '.join(names)}: {why}" for why, names in reasons.items()) + "\n"


def seeds(lines: list[Line]) -> str:
    """The single seeds of rows that are averaged over several."""
    told = [line for line in lines if line["seeds"]]
    each = [f"{line['name']}: {', '.join(number(score) for score in line['seeds'])}" for line in told]
    return f"Scores of the single seeds. {'; '.join(each)}.\n" if each else ""


def adaptive(content: dict[str, Any]) -> str:
    """ATP-LLaVA's counts: their mean against the target, image by image and layer by layer."""
    if not content["adaptive"]:
        return ""
    parts = [
        "## What ATP-LLaVA keeps\n",
        "Trained by `scripts/finetune_lora.sh` with its method file. Equivalent tokens of single images, and visual tokens of each "
        "decoder layer (mean, and extremes over images).\n",
        "| target | on the benchmarks | off by | mean of the images | least to most | standard deviation | different images | layers |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for one in content["adaptive"]:
        line = next(line for line in content["rows"] if (line["name"], line["table"]) == (one["name"], one["table"]))
        met = line["equivalent"]
        layers = zip(one["layer_tokens"], one["layer_least"], one["layer_most"], strict=True)
        told = ", ".join(f"{mean:.1f} ({least:.0f} to {most:.0f})" for mean, least, most in layers)
        parts.append(
            f"| {one['target']:g} | {met:.2f} | {100 * (met / one['target'] - 1):+.1f}% | {one['mean']:.2f} | "
            f"{one['least']:.1f} to {one['most']:.1f} | {one['deviation']:.2f} | {one['different']} of {one['images']} | {told} |"
        )
    return "\n".join(parts) + "\n"
