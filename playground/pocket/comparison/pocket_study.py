"""The comparison in the pocket world: `make reproduce-methods`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import yaml

from llava_prumerge.efficiency.shapes import model_shape
from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.model.loading import load_model
from playground.pocket.comparison import rows
from playground.pocket.comparison.pages import asked, counted
from playground.pocket.comparison.rows import (
    OWN_RULE,
    PRUMERGE,
    PRUMERGE_PLUS,
    Row,
    pair_row,
    pruner_rows,
    reducer_rows,
    with_unlisted,
)
from playground.pocket.comparison.study import Content, Section, Study

if TYPE_CHECKING:
    from playground.pocket.comparison.places import Places
    from playground.pocket.comparison.report import Evaluated

BUDGETS = (72, 36, 18, 9)
"""Equivalent tokens: 50%, 25%, 12.5% and 6.25% of P = 144."""
TRAINED = (72, 36)
LEARNT = {"llava_mini": (36,), "meta_compress": (36, 9)}
"""Budgets of methods whose tokens are all their own: few, as their papers have them."""
FOLDERS = {
    "full": "pocket-lora-none",
    "prumerge_plus_72": "pocket-lora-prumerge_plus",
    "prumerge_plus_36": "pocket-lora-prumerge_plus-36",
    "atp_72": "pocket-lora-atp_llava-72",
    "atp_36": "pocket-lora-atp_llava-36",
    "llava_mini_36": "pocket-lora-llava_mini-36",
    "meta_compress_36": "pocket-method-meta_compress-36",
    "meta_compress_9": "pocket-method-meta_compress-9",
}
"""Model of a row -> its run's folder; the first two are those of `make reproduce`."""
SHAPE = model_shape("pocket")
MERGE = {"neighbours": 8}
"""As in `make reproduce`: the share of 144 patches that the released 32 are of 576."""
PLUS = {"share": 0.4, **MERGE}
"""PruMerge+ as `make reproduce` trains it: 40% of its tokens by attention, the rest an even sample."""
G_SEARCH, P_SIGMOID, ATP = "G-Search", "P-Sigmoid", "ATP-LLaVA"
LEARNERS = {"LLaVA-Mini": "llava_mini", "MetaCompress": "meta_compress"}
VISION = {
    **rows.VISION,
    PRUMERGE: {"name": "prumerge", **MERGE},
    f"{PRUMERGE}, k = 32": {"name": "prumerge"},  # the release's number, whatever the grid
    PRUMERGE_PLUS: {"name": "prumerge_plus", **PLUS},
}
DECODER = {
    **rows.DECODER,
    G_SEARCH: {"name": "rank_schedule"},  # with the rates that its search found
    P_SIGMOID: {"name": "rank_schedule"},  # with r and gamma of the search for its budget
}
OWN: dict[str, dict[str, Any]] = {  # by their papers' rules, whatever that costs
    PRUMERGE: {"vision": {"name": "prumerge"}},
    PRUMERGE_PLUS: {"vision": {"name": "prumerge_plus"}},
    "TRSM, 20%": {"vision": {"name": "trsm", "keep_ratio": 0.2}},
    "TRSM, 80%": {"vision": {"name": "trsm", "keep_ratio": 0.8}},
    "PAR, 11%": {"vision": {"name": "par"}},
    "FastV": {"decoder": {"name": "fastv"}},
    "DART": {"decoder": {"name": "dart"}},
    "PyramidDrop": {"decoder": {"name": "pyramiddrop"}},
    "VTW": {"decoder": {"name": "vtw"}},
    G_SEARCH: {"decoder": {"name": "rank_schedule"}},  # the rates that its search found
}


def searched(name: str, budget: int, found: Path) -> dict[str, Any]:
    """The pruner's block that a search wrote (P-Sigmoid's is of a budget); its defaults where none was run."""
    path = found / (f"p_sigmoid_{budget}.yaml" if name == P_SIGMOID else "g_search.yaml")
    if not path.is_file():
        return {"name": "rank_schedule"}
    return yaml.safe_load(path.read_text("utf-8"))["decoder"]


def budget_rows(budget: int, found: Path) -> Iterator[Row]:
    """The training-free rows of one table.

    Args:
        budget: equivalent tokens.
        found: folder of what the searches wrote.
    """
    yield from reducer_rows(SHAPE, with_unlisted(VISION, VisionReducer), budget, budget)
    pruners: dict[str, Mapping[str, Any]] = with_unlisted(DECODER, DecoderPruner)
    pruners |= {name: searched(name, budget, found) for name in (G_SEARCH, P_SIGMOID)}
    yield from pruner_rows(SHAPE, pruners, budget)
    yield pair_row(f"{PRUMERGE_PLUS} with FastV, K = 1", budget, VISION[PRUMERGE_PLUS], DECODER["FastV, K = 1"])
    yield pair_row(
        f"{PRUMERGE_PLUS} with {P_SIGMOID}", budget, VISION[PRUMERGE_PLUS], searched(P_SIGMOID, budget, found)
    )
    yield pair_row("VScan", budget, VISION["VScan, encoder"], DECODER["VScan, decoder"])


def own_rows(found: Path) -> Iterator[Row]:
    """The training-free rows without a budget."""
    for name, block in OWN.items():
        yield Row(name, OWN_RULE, {"decoder": searched(name, 0, found)} if name == G_SEARCH else block)


def trained_rows() -> Iterator[Row]:
    """Rows whose weights learnt the method; ATP-LLaVA is steered to its target and need not meet it exactly."""
    for budget in TRAINED:
        yield Row(PRUMERGE_PLUS, budget, None, model=f"prumerge_plus_{budget}")
        yield Row(ATP, budget, None, model=f"atp_{budget}")
    for name, key in LEARNERS.items():
        for budget in LEARNT[key]:
            yield Row(name, budget, None, model=f"{key}_{budget}")


def introduction(content: Content) -> str:
    """What was done, and how to read it."""
    seeds = content["seeds"]
    return f"""# All methods on one table per budget

Command: `{content["command"]}`. Revision: {content["revision"]} (of the evaluations: {", ".join(content["revisions_of_results"])}).
Seeds: questions {seeds["questions"]}, training {seeds["training"]}, random baseline {", ".join(map(str, seeds["random"]))}, searches {seeds["search"]}.
torch {content["versions"]["torch"]}, transformers {content["versions"]["transformers"]}. This file is written by the command.

Pocket world: a small LLaVA on generated scenes, {content["patches"]} patches, 6 decoder layers. What holds here need not hold at 7B.

{counted()}
- *Score*: mean over the benchmarks ({asked(content)} questions; for POPE accuracy, not F1) of the mean mark in percent, with its 95% interval over questions.
- *Difference*: from the full model on the same questions, paired, with its 95% interval; **bold** where that excludes 0.
- *Prefill*: CPU time of one thread per image in batches of 16, in percent of the full model's in turns with it; tower, reducer and pruner included.
- All rows use the weights of the full model (training-free) but those marked *trained*.
- A method that cannot cost so little stays blank, with its reason below the table.

![Score against equivalent tokens](methods.png)
"""


def adaptivity(row: Row, places: Places) -> dict[str, Any]:
    """What an adaptive method did to each image and in each layer, from its prefills; its target, where it has one."""
    visual = json.loads((places.prefills / f"{row.stem}.json").read_text("utf-8"))["visual"]  # [B, layers]
    each = [fmean(layers) for layers in visual]
    model, _ = load_model(places.model(row.model), row.block, device="cpu")
    return {
        "name": row.name,
        "table": row.table,
        "target": getattr(model.model.language_model.pruner, "target", None),
        "images": len(each),
        "mean": fmean(each),
        "least": min(each),
        "most": max(each),
        "deviation": stdev(each),
        "different": len({tuple(layers) for layers in visual}),
        "layer_tokens": [fmean(layer) for layer in zip(*visual, strict=True)],
        "layer_least": [min(layer) for layer in zip(*visual, strict=True)],
        "layer_most": [max(layer) for layer in zip(*visual, strict=True)],
    }


def more(content: Content, evaluated: Evaluated) -> Content:
    """What ATP-LLaVA keeps."""
    return {"adaptive": [adaptivity(row, evaluated.places) for row in trained_rows() if row.name == ATP]}


def conclusion(content: Content) -> str:
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


STUDY = Study(
    name="methods",
    model_label="pocket",
    shape=SHAPE,
    budgets=BUDGETS,
    budget_rows=budget_rows,
    trained=trained_rows,
    sections=(
        Section(
            OWN_RULE,
            "By their own rules",
            "Training-free and without a budget: what each paper's rule costs here.",
            own_rows,
        ),
    ),
    folders=FOLDERS,
    tasks=("vqav2", "textvqa", "pope"),
    settings={"batch_size": "64", "workers": "1"},
    seeds={"questions": 1, "training": 42, "search": 0},
    introduction=introduction,
    conclusion=conclusion,
    more=more,
)
