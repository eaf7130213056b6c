"""Made-up images as reducers see them, with class attention of a wanted shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, ReductionError, VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer, discover, method_names

PATCH = 14
REDUCERS = method_names(VisionReducer)


def peaked_logits(images: int, patches: int, seed: int = 0, high: float = 0.07) -> Tensor:
    """Most patches alike, a `high` share well above. [N, P]"""
    generator = torch.Generator().manual_seed(seed)
    peaks = torch.rand(images, patches, generator=generator) < high
    return 0.4 * torch.randn(images, patches, generator=generator) + 4.0 * peaks


def make_tokens(
    images: int = 3,
    grid: tuple[int, int] = (12, 12),
    width: int = 16,
    seed: int = 0,
    logits: Tensor | None = None,
    class_token: bool = True,
    dtype: torch.dtype = torch.float32,
) -> VisionTokens:
    """Random features and keys. The first key channel carries `logits` [N, P]; every query reads that channel alone."""
    generator = torch.Generator().manual_seed(seed)
    patches = grid[0] * grid[1]
    logits = peaked_logits(images, patches, seed) if logits is None else logits
    keys = torch.randn(images, patches, width, generator=generator)
    keys[..., 0] = logits
    features = torch.randn(images, patches, width, generator=generator)
    queries = torch.zeros(images, 1 if class_token else patches, width)
    queries[..., 0] = width**0.5
    if class_token:
        keys = torch.cat([torch.zeros(images, 1, width), keys], dim=1)
    text = torch.randn(images, 5, width, generator=generator).to(dtype)
    keys, queries = keys.to(dtype), queries.to(dtype)
    return VisionTokens(
        features=features.to(dtype),
        grid=grid,
        projections=lambda own=False: (queries, keys),
        heads=4,
        prompt=lambda: (text, torch.ones(images, 5, dtype=torch.bool)),
        ids=torch.arange(images) * 7919 + seed,
        class_token=torch.randn(images, 1, width, generator=generator).to(dtype) if class_token else None,
    )


def alone(image: VisionTokens, index: int) -> VisionTokens:
    """One image of a batch as a batch of its own."""
    only = slice(index, index + 1)
    queries, keys = image.projections()
    text, mask = image.prompt()
    return VisionTokens(
        features=image.features[only],
        grid=image.grid,
        projections=lambda own=False: (queries[only], keys[only]),
        heads=image.heads,
        prompt=lambda: (text[only], mask[only]),
        ids=image.ids[only],
        class_token=None if image.class_token is None else image.class_token[only],
    )


def tower_grid(reducer: VisionReducer, grid: tuple[int, int]) -> tuple[int, int]:
    """The grid the tower has after resizing to what the reducer asks for."""
    height, width = reducer.input_size(grid[0] * PATCH, grid[1] * PATCH, PATCH)
    return height // PATCH, width // PATCH


def reduce(block: Mapping[str, Any], grid: tuple[int, int] = (12, 12), **making: Any) -> tuple[VisionTokens, Reduced]:
    """Build the method, let the tower's size follow it, and reduce."""
    reducer = build_reducer(block)
    image = make_tokens(grid=tower_grid(reducer, grid), **making)
    return image, reducer(image)


def works(block: Mapping[str, Any]) -> bool:
    """Whether a method takes these settings."""
    try:
        return build_reducer(block) is not None
    except ReductionError:
        return False


def blocks(budget: int = 20) -> list[dict[str, Any]]:
    """Every method as it is by default, and with a budget, where it has these forms."""
    wanted = [block for name in REDUCERS for block in ({"name": name}, {"name": name, "budget": budget})]
    return [block for block in wanted if works(block)]


def packaged() -> list[str]:
    """Names of the methods that are part of the package; `--plugin` may have brought others."""
    return [name for name, cls in discover().items() if cls.__module__.startswith("llava_prumerge.methods.")]


def label(block: Mapping[str, Any]) -> str:
    """A test's name for a block."""
    return "-".join(f"{key}={value}" if key != "name" else str(value) for key, value in block.items())
