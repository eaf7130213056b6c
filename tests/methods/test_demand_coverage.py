"""Demand coverage against its formula in double loops, and what each of its parts does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from vision_tokens import make_tokens

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_reducer


def kept(image: VisionTokens, **settings: Any) -> list[list[int]]:
    return build_reducer({"name": "demand_coverage", **settings})(image)[2].tolist()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def demands(image: VisionTokens, index: int, share: float, power: float, temperature: float) -> list[float]:
    """By the formula, one number at a time."""
    attention = image.attention(per_head=True, own=True)[index].double().tolist()
    total = sum(value**power for value in attention)
    salient = [value**power / total for value in attention]
    words = image.text[index].double()[image.text_mask[index]]
    patches = image.features[index].double()
    likeness = [[cosine(word, patch) for patch in patches] for word in words]
    told = [max(row) - sum(row) / len(row) for row in likeness]
    asked = [0.0] * len(patches)
    for row, weight in zip(likeness, told, strict=True):
        whole = sum(math.exp(value / temperature) for value in row)
        for place, value in enumerate(row):
            asked[place] += weight / sum(told) * math.exp(value / temperature) / whole
    return [(1 - share) * one + share * other for one, other in zip(salient, asked, strict=True)]


@pytest.mark.parametrize(
    "share, power, centre, rows", [(0.5, 0.5, True, 192), (0.0, 1.0, True, 9), (1.0, 0.5, False, 192)]
)
def test_equals_its_formula_in_double_loops(share: float, power: float, centre: bool, rows: int) -> None:
    image, size = make_tokens(2, (5, 4), seed=3), 6
    found = kept(image, budget=size, question=share, power=power, centre=centre, rows=rows, text="all")
    for index in range(2):
        demand = demands(image, index, share, power, 0.05)
        wanted = sorted(range(len(demand)), key=lambda place: -demand[place])[:rows]
        features = image.before_projector[index].double()
        features = features - features.mean(dim=0) if centre else features
        near = [[math.exp((cosine(one, other) - 1) / 0.1) for other in features] for one in features]
        chosen: list[int] = []
        for _ in range(size):
            worth = {
                new: sum(demand[place] * max(near[place][other] for other in [*chosen, new]) for place in wanted)
                for new in range(len(demand))
                if new not in chosen
            }
            chosen.append(max(worth, key=lambda place: worth[place]))
        assert found[index] == sorted(chosen)


def test_each_part_acts() -> None:
    image = make_tokens(2, (12, 12), seed=4)
    image.features = image.features + 2.0  # what all patches have in common
    base = kept(image, budget=12)
    changes: list[dict[str, Any]] = [{"question": 0}, {"power": 0}, {"centre": False}, {"temperature": 1.0}]
    for change in [*changes, {"question": 1.0}, {"question_temperature": 1.0}, {"rows": 4}]:
        assert kept(image, budget=12, **change) != base, change


def test_no_prompt_is_needed_where_it_has_no_share() -> None:
    image = make_tokens(2, (6, 6))
    image.prompt = None
    assert [len(row) for row in kept(image, budget=5, question=0)] == [5, 5]


def test_what_is_asked_about_gets_the_tokens() -> None:
    """Two groups of equal patches attended to alike: of the one that is asked about more varieties are kept."""
    image = make_tokens(1, (8, 8), seed=5)
    generator = torch.Generator().manual_seed(0)
    word, other = torch.eye(image.features.shape[2])[:2]
    noise = 0.6 * torch.randn(image.features.shape, generator=generator) / image.features.shape[2] ** 0.5
    side = torch.arange(64) % 8 < 4
    image.features = torch.where(side[:, None], word, other)[None] + noise
    image.prompt = lambda: (word[None, None], torch.ones(1, 1, dtype=torch.bool))
    count = [sum(place % 8 < 4 for place in kept(image, budget=8, power=0, question=share)[0]) for share in (0, 0.9)]
    assert count[0] < count[1]
