"""At a fixed budget a reduction is one graph for `torch.compile`: nothing depends on values, nothing comes to the host.

The backend is "eager": what is tested is the capture, so no C compiler is needed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vision_tokens import make_tokens

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.registry import build_reducer

BUDGET = 20
FIXED: list[dict[str, Any]] = [
    {"name": "prumerge", "budget": BUDGET},
    {"name": "prumerge", "budget": BUDGET, "order": "raster", "merge": "average", "per_head": True},
    {"name": "prumerge_plus", "budget": BUDGET},
    {"name": "prumerge_plus", "budget": BUDGET, "order": "raster", "extra": False},
    *({"name": name, "budget": BUDGET} for name in ("cls_topk", "fastervlm", "uniform", "random", "grid", "pool")),
    {"name": "grid", "rows": 4, "columns": 5},
    {"name": "pool", "rows": 4, "columns": 5},
    {"name": "visionzip", "budget": BUDGET},
]


@pytest.mark.parametrize("block", FIXED, ids=lambda block: "-".join(str(value) for value in block.values()))
def test_a_fixed_budget_is_one_graph(block: dict[str, Any]) -> None:
    torch.compiler.reset()
    reducer, image = build_reducer(block).eval(), make_tokens()

    def reduce(features: Tensor, queries: Tensor, keys: Tensor, ids: Tensor) -> Reduced:
        return reducer(VisionTokens(features, image.grid, lambda own=False: (queries, keys), image.heads, ids=ids))

    given = (image.features, *image.projections(), image.ids)
    whole = torch.compile(reduce, backend="eager", fullgraph=True)
    for ours, plain in zip(whole(*given), reduce(*given), strict=True):
        torch.testing.assert_close(ours, plain)
    assert reduce(*given)[1].sum(dim=1).tolist() == [BUDGET] * len(image.features)
