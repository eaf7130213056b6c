"""The method comparison as Markdown: one table per budget, and the blank rows with their reasons."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from playground.pocket.comparison.rows import REFERENCE, TEXT_ONLY

if TYPE_CHECKING:
    from playground.pocket.comparison.study import Content, Study

Line = dict[str, Any]


def page(content: Content, study: Study) -> str:
    """The whole file."""
    lines, patches = content["rows"], content["patches"]
    head = [line for line in lines if line["table"] == ""]
    parts = [study.introduction(content)]
    for budget in study.budgets:
        parts.append(f"## {budget} of {patches} equivalent tokens ({100 * budget / patches:.3g}%)\n")
        parts += body(content, head, [line for line in lines if line["table"] == budget])
    for section in study.sections:
        parts += [f"## {section.title}\n", f"{section.note}\n"]
        parts += body(content, head, [line for line in lines if line["table"] == section.key])
    parts.append(study.conclusion(content))
    return "\n".join(part for part in parts if part)


def body(content: Content, head: list[Line], lines: list[Line]) -> list[str]:
    """A table with what stands below it; of a partial report, one that has no row yet is told in words."""
    if lines and all(line["score"] is None for line in lines):
        return ["Not evaluated yet.\n"]
    return [table(content, [*head, *lines]), blanks(lines), seeds(lines)]


def asked(content: Content) -> str:
    """The benchmarks with their numbers of questions."""
    return ", ".join(f"{content['tasks'][task]} {number}" for task, number in content["questions"].items())


def counted() -> str:
    """What the tables' columns of tokens mean."""
    return (
        "- *Equivalent tokens* are visual tokens averaged over the decoder's layers; *kept* is what an image enters the "
        "decoder with."
    )


def table(content: dict[str, Any], lines: list[Line]) -> str:
    """One table, the references first and the others by falling score, blank ones last."""
    first = [line for line in lines if line["name"] in (REFERENCE, TEXT_ONLY)]
    rest = [line for line in lines if line not in first]
    rest.sort(key=lambda line: (line["score"] is None, -(line["score"] or 0.0)))
    titles = [content["tasks"][task] for task in content["questions"]]
    head = ["method", "settings", "kept", "equivalent", "score", "difference", *titles]
    head += ["prefill"] if is_timed(content) else []
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
    last = ["" if share is None else f"{share:.0f}%"] if is_timed(content) else []
    return [
        name,
        line["settings"],
        number(line["kept"]),
        number(line["equivalent"], 2),
        spread(line["score"], line["half"]),
        difference,
        *scores,
        *last,
    ]


def is_timed(content: Content) -> bool:
    """Whether prefills were timed."""
    return any(line["share_of_full"] is not None for line in content["rows"])


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
