"""The rows of the comparison: every method at every budget, and for those that cannot meet it the reason why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.efficiency.shapes import ModelShape, model_shape
from llava_prumerge.efficiency.tokens import method_counts
from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.methods.registry import build_reducer, discover, fields_of, method_names
from llava_prumerge.ops.errors import ReductionError

BUDGETS = (72, 36, 18, 9)
"""Equivalent tokens: 50%, 25%, 12.5% and 6.25% of P = 144."""
TRAINED = (72, 36)
SEEDS = (0, 1, 2)
SHAPE = "pocket"
WITHIN = 0.5
"""A budget is met where whole tokens allow for no better: half a token."""
MERGE = {"neighbours": 8}
"""As in `make reproduce`: the share of 144 patches that the released 32 are of 576."""
PLUS = {"share": 0.4, **MERGE}
"""PruMerge+ as `make reproduce` trains it: 40% of its tokens by attention, the rest an even sample."""
PRUMERGE, PRUMERGE_PLUS, G_SEARCH, P_SIGMOID, ATP = "PruMerge", "PruMerge+", "G-Search", "P-Sigmoid", "ATP-LLaVA"
REFERENCE, TEXT_ONLY, OWN_RULE = "full tokens", "text only", "own rule"

# Label -> block without budget, by default settings but where a comment says why not. A method that is not listed gets a
# row too (`with_unlisted`).
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
    PRUMERGE: {"name": "prumerge", **MERGE},
    f"{PRUMERGE}, k = 32": {"name": "prumerge"},  # the release's number, whatever the grid
    PRUMERGE_PLUS: {"name": "prumerge_plus", **PLUS},
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
HANDED_ON = 14 / 9
"""What PruMerge+ leaves to the pruner behind it, times the budget: FastV then drops to a whole number at all budgets."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: of the method, as the table calls it.
        table: a budget, or `OWN_RULE`, or "" for the references, which stand in all.
        block: the reduction; None takes the checkpoint's own.
        model: whose folder it is (`models` of a plan).
        seed: of a row that is averaged over several.
        images: "off" for the text-only row.
        why: reason for a blank row.
    """

    name: str
    table: int | str
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


def shape() -> ModelShape:
    """The pocket model's numbers."""
    return model_shape(SHAPE)


def _learns(reducer: VisionReducer) -> bool:
    """Whether a method has weights of its own, which training-free rows would leave as they are drawn."""
    return type(reducer).grow is not VisionReducer.grow or any(True for _ in reducer.parameters())


def obstacle(block: Mapping[str, Any], budget: float) -> str:
    """Why a method cannot cost so many equivalent tokens; "" where it can."""
    settings = {key: value for key, value in block.items() if key not in ("name", "budget")}
    try:
        counts = method_counts(shape(), block["name"], budget, settings=settings)
    except ReductionError as error:
        return str(error)
    if issubclass(discover()[block["name"]], VisionReducer) and _learns(
        build_reducer({**block, "budget": round(budget)})
    ):
        return f"{block['name']}: its own weights have to be trained first"
    if abs(counts.equivalent - budget) > WITHIN:
        return f"{block['name']}: the nearest it can cost is {counts.equivalent:g}"
    return ""


def with_unlisted(listed: Mapping[str, dict[str, Any]], kind: type) -> dict[str, dict[str, Any]]:
    """The listed methods of one contract, and every other registered one that takes a budget, by its defaults."""
    known = {block["name"] for block in listed.values()}
    others = [name for name in method_names(kind) if name not in known and "budget" in fields_of(discover()[name])]
    return {**listed, **{name: {"name": name} for name in others}}


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
    for name, block in with_unlisted(VISION, VisionReducer).items():
        why = obstacle(block, budget)
        seeds = SEEDS if "seed" in fields_of(discover()[block["name"]]) else (None,)
        for seed in seeds:
            drawn = {} if seed is None else {"seed": seed}
            yield Row(name, budget, {"vision": {**block, **drawn, "budget": budget}}, seed=seed, why=why)
    for name, block in with_unlisted(DECODER, DecoderPruner).items():
        block = searched(name, budget, found) if name in (G_SEARCH, P_SIGMOID) else block
        yield Row(name, budget, {"decoder": {**block, "budget": budget}}, why=obstacle(block, budget))
    handed = round(HANDED_ON * budget)
    pairs = {
        f"{PRUMERGE_PLUS} with FastV, K = 1": (VISION[PRUMERGE_PLUS], DECODER["FastV, K = 1"]),
        f"{PRUMERGE_PLUS} with {P_SIGMOID}": (VISION[PRUMERGE_PLUS], searched(P_SIGMOID, budget, found)),
        "VScan": (VISION["VScan, encoder"], DECODER["VScan, decoder"]),
    }
    for name, (first, then) in pairs.items():
        pair = {"vision": {**first, "budget": handed}, "decoder": {**then, "budget": budget}}
        yield Row(name, budget, pair)


def own_rows(found: Path) -> Iterator[Row]:
    """The training-free rows without a budget."""
    for name, block in OWN.items():
        yield Row(name, OWN_RULE, {"decoder": searched(name, 0, found)} if name == G_SEARCH else block)


def trained_rows() -> Iterator[Row]:
    """Rows whose weights learnt the method; ATP-LLaVA is steered to its target and need not meet it exactly."""
    for budget in TRAINED:
        yield Row(PRUMERGE_PLUS, budget, None, model=f"prumerge_plus_{budget}")
        yield Row(ATP, budget, None, model=f"atp_{budget}")


def all_rows(found: Path) -> list[Row]:
    """Every row: the full model, the same questions without images, then table by table.

    Args:
        found: folder of what the searches wrote.
    """
    rows = [Row(REFERENCE, "", {}), Row(TEXT_ONLY, "", {}, images="off"), *trained_rows()]
    return [*rows, *(row for budget in BUDGETS for row in budget_rows(budget, found)), *own_rows(found)]


def tables() -> list[int | str]:
    """Of the report, in order; the references come first."""
    return ["", *BUDGETS, OWN_RULE]
