"""The rows of the comparison: every method at every budget, and for those that cannot meet it the reason why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_prumerge.efficiency.shapes import ModelShape
from llava_prumerge.efficiency.tokens import method_counts
from llava_prumerge.methods.base import VisionReducer
from llava_prumerge.methods.registry import build_reducer, discover, fields_of, method_names
from llava_prumerge.ops.errors import ReductionError

SEEDS = (0, 1, 2)
WITHIN = 0.5
"""A budget is met where whole tokens allow for no better: half a token."""
HANDED_ON = 14 / 9
"""What a reducer leaves to the pruner behind it, times the budget: few enough for a pruner whose first three of six layers see
all of them, and FastV's number behind the first two is then whole at the pocket world's budgets."""
PRUMERGE, PRUMERGE_PLUS = "PruMerge", "PruMerge+"
REFERENCE, TEXT_ONLY, OWN_RULE = "full tokens", "text only", "own rule"

# Label -> block without budget, by default settings. A study may set some of them, or add to them; a method that is not listed
# gets a row too (`with_unlisted`).
VISION: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "uniform": {"name": "uniform"},
    "first": {"name": "uniform", "sample": "first"},
    "grid": {"name": "grid"},
    "pool": {"name": "pool"},
    "downsample": {"name": "downsample"},
    "CLS top-k": {"name": "cls_topk"},
    "FasterVLM": {"name": "fastervlm"},
    "VisionZip": {"name": "visionzip"},
    "ToMe": {"name": "tome"},
    "DivPrune": {"name": "divprune"},
    PRUMERGE: {"name": "prumerge"},
    PRUMERGE_PLUS: {"name": "prumerge_plus"},
    "TRSM": {"name": "trsm"},
    "PAR": {"name": "par"},
    "SCOPE": {"name": "scope"},
    "VisPruner": {"name": "vispruner"},
    "HoloV": {"name": "holov"},
    "CDPruner": {"name": "cdpruner"},
    "MMTok": {"name": "mmtok"},
    "TRIM": {"name": "trim"},
    "HiRED": {"name": "hired"},
    "PruneSID": {"name": "prunesid"},
    "TrimTokenator": {"name": "trimtokenator"},
    "VScan, encoder": {"name": "vscan"},
    "DPC-KNN": {"name": "dpc_knn"},
    "FlowCut": {"name": "flowcut"},
    "LLaVA-Mini": {"name": "llava_mini"},
    "MetaCompress": {"name": "meta_compress"},
}
DECODER: dict[str, dict[str, Any]] = {
    "FastV": {"name": "fastv"},
    "FastV, K = 1": {"name": "fastv", "layer": 1},  # 2 of 32 layers are less than one of 6
    "DART": {"name": "dart"},
    "DART, K = 1": {"name": "dart", "layer": 1},
    "PyramidDrop": {"name": "pyramiddrop"},
    "VTW": {"name": "vtw"},
    "SparseVLM": {"name": "sparsevlm"},
    "uniform stride": {"name": "uniform_stride"},
    "uniform stride, K = 1": {"name": "uniform_stride", "layers": [1]},
    "VScan, decoder": {"name": "vscan_decoder"},
}


Table = int | str
"""A budget, the key of another section, or "" for the references, which stand in all."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: of the method, as the table calls it.
        table: that it stands in.
        block: the reduction; None takes the checkpoint's own.
        model: whose folder it is (`Study.folders`).
        seed: of a row that is averaged over several.
        images: "off" for the text-only row.
        why: reason for a blank row.
    """

    name: str
    table: Table
    block: Mapping[str, Any] | None = field(default_factory=dict)
    model: str = "full"
    seed: int | None = None
    images: str = "on"
    why: str = ""

    @property
    def trained(self) -> bool:
        """The weights learnt the method."""
        return self.model != "full"

    @property
    def label(self) -> str:
        """Unique among all rows."""
        words = [self.name, *(["trained"] if self.trained else [])]
        words += [str(self.table)] if self.table else []
        return " ".join(words + ([] if self.seed is None else [f"seed {self.seed}"]))

    @property
    def stem(self) -> str:
        """Of its files."""
        return re.sub(r"[^\w.+=-]+", "_", self.label)

    @property
    def settings(self) -> str:
        """What is set beside the table's budget, for people."""
        parts = [dict(part) for part in (self.block or {}).values()]
        plain = {"name", "seed"}
        told = [
            [
                f"{key} {value}"
                for key, value in part.items()
                if key not in plain and (key, value) != ("budget", self.table)
            ]
            for part in parts
        ]
        return "; ".join(", ".join(words) for words in told if words)


def _learns(reducer: VisionReducer) -> bool:
    """Whether a method has weights of its own, which training-free rows would leave as they are drawn."""
    return type(reducer).grow is not VisionReducer.grow or any(True for _ in reducer.parameters())


def obstacle(shape: ModelShape, block: Mapping[str, Any], budget: float) -> str:
    """Why a method cannot cost so many equivalent tokens in a model; "" where it can."""
    settings = {key: value for key, value in block.items() if key not in ("name", "budget")}
    try:
        counts = method_counts(shape, block["name"], budget, settings=settings)
    except ReductionError as error:
        return str(error)
    if issubclass(discover()[block["name"]], VisionReducer) and _learns(
        build_reducer({**block, "budget": round(budget)})
    ):
        return f"{block['name']}: its own weights have to be trained first"
    if abs(counts.equivalent - budget) > WITHIN:
        return f"{block['name']}: the nearest it can cost is {counts.equivalent:g}"
    return ""


def with_unlisted(listed: Mapping[str, Mapping[str, Any]], kind: type) -> dict[str, Mapping[str, Any]]:
    """The listed methods of one contract, and every other registered one that takes a budget, by its defaults."""
    known = {block["name"] for block in listed.values()}
    others = [name for name in method_names(kind) if name not in known and "budget" in fields_of(discover()[name])]
    return {**listed, **{name: {"name": name} for name in others}}


def reducer_rows(
    shape: ModelShape, listed: Mapping[str, Mapping[str, Any]], budget: int, table: Table
) -> Iterator[Row]:
    """Training-free rows of vision reducers, one for each seed where a method draws by lot.

    Args:
        shape: of the model.
        listed: label -> block without budget.
        budget: tokens that each leaves.
        table: that the rows stand in.
    """
    for name, block in listed.items():
        seeds = SEEDS if "seed" in fields_of(discover()[block["name"]]) else (None,)
        for seed in seeds:
            drawn = {} if seed is None else {"seed": seed}
            made = {"vision": {**block, **drawn, "budget": budget}}
            yield Row(name, table, made, seed=seed, why=obstacle(shape, block, budget))


def pruner_rows(shape: ModelShape, listed: Mapping[str, Mapping[str, Any]], budget: int) -> Iterator[Row]:
    """Training-free rows of decoder pruners: label -> block without budget."""
    for name, block in listed.items():
        yield Row(name, budget, {"decoder": {**block, "budget": budget}}, why=obstacle(shape, block, budget))


def pair_row(name: str, budget: int, first: Mapping[str, Any], then: Mapping[str, Any]) -> Row:
    """A training-free row of a reducer with a pruner behind it, which together cost the budget."""
    pair = {"vision": {**first, "budget": round(HANDED_ON * budget)}, "decoder": {**then, "budget": budget}}
    return Row(name, budget, pair)


def reference_rows() -> Iterator[Row]:
    """The full model, and the same questions without images."""
    yield Row(REFERENCE, "", {})
    yield Row(TEXT_ONLY, "", {}, images="off")
