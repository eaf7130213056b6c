"""The measurement of half precision acts: scores stay in the type where they should, and what is kept is compared."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_spec = importlib.util.spec_from_file_location("half_precision", Path(__file__).with_name("half_precision.py"))
assert _spec and _spec.loader
half = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = half
_spec.loader.exec_module(half)


def test_scores_stay_in_the_type() -> None:
    values = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float16)
    with half.ScoresInType(torch.float16) as mode:
        assert values.float().dtype == values.softmax(0, dtype=torch.float32).dtype == torch.float16
        assert torch.ones(3).float().dtype == torch.float32 and (values > 0.15).float().dtype == torch.float16
        assert torch.quantile(values, 0.5).item() == values[1].item()  # which torch has in float32 alone
        hidden = values.masked_fill(values > 0.25, torch.finfo(torch.float32).min)
    assert values.float().dtype == torch.float32 and mode.kept == 1
    assert hidden[2].item() == torch.finfo(torch.float16).min


def test_methods_are_measured_with_both_rules() -> None:
    found = half.compare(["vtw", "fastv", "prumerge"], 1, Path("nowhere"))
    assert list(found) == ["vtw", "fastv", "prumerge"] and found["vtw"] == [(1.0, 1, 1)] * 4
    assert all(0.5 < share <= 1 and total == 1 for cells in found.values() for share, _, total in cells)
    arrays = half.compare_arrays(["fastv", "prumerge", "uniform", "trsm"])
    assert list(arrays) == ["prumerge", "uniform"] and all(len(cells) == 4 for cells in arrays.values())
    assert arrays["prumerge"][3][0] < 1  # bfloat16 has three digits: some choice differs


def test_sets_are_compared_stage_by_stage() -> None:
    one, other = (frozenset({1, 2}), frozenset({1})), (frozenset({1, 3}), frozenset({1}))
    assert half.in_common(one, one) == 1 and abs(half.in_common(one, other) - (1 / 3 + 1) / 2) < 1e-9
