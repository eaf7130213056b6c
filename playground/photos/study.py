"""The comparison on photographs: `make reproduce-photos`. Budgets are tokens of 576, the constants those that were released."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_prumerge.efficiency.shapes import ModelShape, named_shapes
from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from playground.photos import findings
from playground.pocket.comparison.pages import asked, counted
from playground.pocket.comparison.rows import (
    DECODER,
    OWN_RULE,
    PRUMERGE,
    PRUMERGE_PLUS,
    VISION,
    Row,
    pair_row,
    pruner_rows,
    reducer_rows,
    with_unlisted,
)
from playground.pocket.comparison.study import Content, Section, Study

BUDGETS = (192, 128, 64, 32)
MIDDLE = 64
"""The budget of the tables that look into merging and into positions, and of what was trained."""
FOLDERS = {
    "full": "photos-none",
    "prumerge": "photos-prumerge",
    "prumerge_plus": "photos-prumerge_plus",
    "prumerge_unmerged": "photos-prumerge-unmerged",
}
TRAINED = {
    PRUMERGE: "prumerge",
    PRUMERGE_PLUS: "prumerge_plus",
    f"{PRUMERGE}, nothing merged, no extra token": "prumerge_unmerged",
}
SHAPE = ModelShape("photos", named_shapes()["small"].vision, named_shapes()["pocket"].language)
TOWERS = "runs/photos/towers"
"""Hidden states of the tower, which no row has to compute again."""
MERGING, POSITIONS = "merging", "positions"
HEADS = {"name": "prumerge", "per_head": True}
MERGED: dict[str, dict[str, Any]] = {
    f"{PRUMERGE} as released": {"name": "prumerge"},
    **{f"per head, sum of k = {k}": {**HEADS, "neighbours": k} for k in (32, 8, 4)},
    **{f"per head, average of k = {k}": {**HEADS, "merge": "average", "neighbours": k} for k in (32, 8, 4)},
    "per head, nothing merged": {**HEADS, "neighbours": 0},
    "per head, nothing merged, no extra token": {**HEADS, "neighbours": 0, "extra": False},
}
"""PruMerge's choice of tokens with everything that it can do to them."""
PLACED: dict[str, dict[str, Any]] = {
    name: block
    for method, plain in {
        "random": {"name": "random"},
        "FasterVLM": {"name": "fastervlm"},
        "DivPrune": {"name": "divprune"},
        "SCOPE": {"name": "scope"},
        PRUMERGE: {"name": "prumerge"},
        PRUMERGE_PLUS: {"name": "prumerge_plus"},
    }.items()
    for name, block in {
        f"{method}, numbered anew": plain,
        f"{method}, places kept": {**plain, "positions": "original"},
    }.items()
}
"""The same tokens with positions one after the other, as released, and with those of their patches."""
ORDERED: dict[str, dict[str, Any]] = {
    f"{PRUMERGE}, raster order, numbered anew": {"name": "prumerge", "order": "raster"},
    f"{PRUMERGE}, raster order, places kept": {"name": "prumerge", "order": "raster", "positions": "original"},
}
OWN: dict[str, dict[str, Any]] = {
    PRUMERGE: {"vision": {"name": "prumerge"}},
    PRUMERGE_PLUS: {"vision": {"name": "prumerge_plus"}},
    "TRSM, 20%": {"vision": {"name": "trsm", "keep_ratio": 0.2}},
    "PAR, 11%": {"vision": {"name": "par"}},
    "FastV": {"decoder": {"name": "fastv"}},
    "DART": {"decoder": {"name": "dart"}},
    "PyramidDrop": {"decoder": {"name": "pyramiddrop"}},
    "VTW": {"decoder": {"name": "vtw"}},
}
"""By their papers' rules, whatever that costs."""


def budget_rows(budget: int, found: Path) -> Iterator[Row]:
    """The training-free rows of one table; reducers first, which cost a tenth of what pruners cost."""
    yield from reducer_rows(SHAPE, with_unlisted(VISION, VisionReducer), budget, budget)
    yield from pruner_rows(SHAPE, with_unlisted(DECODER, DecoderPruner), budget)
    yield pair_row("VScan", budget, VISION["VScan, encoder"], DECODER["VScan, decoder"])


def section_rows(key: str, listed: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of a further table, all at `MIDDLE` tokens."""
    yield from reducer_rows(SHAPE, listed, MIDDLE, key)


def trained_rows() -> Iterator[Row]:
    """PruMerge and PruMerge+ with weights that learnt them, and PruMerge's tokens with nothing merged into them."""
    for name, key in TRAINED.items():
        yield Row(name, MIDDLE, None, model=key)


def introduction(content: Content) -> str:
    """What was done, and how to read it."""
    seeds, data = content["seeds"], content["data"]
    return f"""# All methods on photographs

Command: `{content["command"]}`. Revision: {content["revision"]} (of the evaluations: {", ".join(content["revisions_of_results"])}).
Seeds: questions {seeds["questions"]}, training {seeds["training"]}, random baseline {", ".join(map(str, seeds["random"]))}.
torch {content["versions"]["torch"]}, transformers {content["versions"]["transformers"]}. This file is written by the command.

DINOv2-small at 336 pixels ({content["patches"]} patches) under the pocket language model (2.1 million parameters, 6 layers). Scenes of
coloured shapes and printed words are painted into photographs ({data["painted_on"]}); questions are the pocket world's, in the six
benchmarks' formats. Scenes and photographs of the questions were not trained on. Projector and language model were trained with all
tokens in place by `configs/train/photos`; methods then act without training, with their released constants unscaled (k = 32).

{counted()}
- *Score*: mean mark of all {content["about_images"]} questions about an image ({asked(content)} questions; for POPE accuracy, not F1; of
  MMBench each rotation counts), in percent, with its 95% interval over the {content["images"]} images.
- *Difference*: from the full model on the same questions, paired, with its 95% interval over images; **bold** where that excludes 0.
- All rows use the weights of the full model (training-free) but those marked *trained*, which were trained as long with the method in place.
- A method that cannot cost so little stays blank, with its reason below the table. Pruners work at the depth there is: "layer 2" of 6
  is a third of the model, of the papers' 32 layers a sixteenth.

![Score against equivalent tokens](photos.png)

{findings.told(content)}"""


STUDY = Study(
    name="photos",
    model_label="photos",
    shape=SHAPE,
    budgets=BUDGETS,
    budget_rows=budget_rows,
    trained=trained_rows,
    sections=(
        Section(
            MERGING,
            f"What merging does, at {MIDDLE} tokens",
            "The tokens that PruMerge's class attention chooses, and what is done to them. *Sum* adds the k nearest tokens, weighted by "
            "attention, as released; *average* is the paper's weighted mean.",
            lambda found: section_rows(MERGING, MERGED),
        ),
        Section(
            POSITIONS,
            f"What positions do, at {MIDDLE} tokens",
            "The same tokens, numbered one after the other or with the positions of their patches; PruMerge's in the order of "
            "attention, or of the raster.",
            lambda found: section_rows(POSITIONS, {**PLACED, **ORDERED}),
        ),
        Section(
            OWN_RULE,
            "By their own rules",
            "Training-free and without a budget: what each paper's rule costs here.",
            lambda found: (Row(name, OWN_RULE, block) for name, block in OWN.items()),
        ),
    ),
    folders=FOLDERS,
    inside="",
    tasks=("vqav2", "textvqa", "pope", "mme", "mmbench", "sqa"),
    settings={"batch_size": "64", "workers": "1", "tower_cache": TOWERS},
    by_image=True,
    seeds={"questions": 0, "training": 42},
    introduction=introduction,
    conclusion=lambda content: "",
    more=findings.more,
)
