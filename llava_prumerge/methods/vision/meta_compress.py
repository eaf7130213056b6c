"""MetaCompress: a learnt matrix, made from the image's own tokens, mixes all of them into few. Trained.

Rethinking Token Reduction for Large Vision-Language Models, CVPR 2026 (arXiv 2603.21701). No code was published: this is
the rule as reading notes quote it. Queries are pooled from the tokens with their places; X' = P X, where P is the row softmax of
(Pool(X + E) W_q) diag(beta) ((X + E) W_k)^T / sqrt(d_c). W_q = W_k and beta = 1 at the start, so that it begins as pooling
weighted by likeness. It is trained by KL(full model's answers || its own) with everything else frozen, plus
the mean entropy of P's rows and the largest sum of one of its columns, with gradients clipped at 0.01.

Ours, where the notes are silent (each with a field): d_c, kernel and stride, the site (behind the projector), the places (fixed sines
and cosines), and W's start. With a budget that no kernel gives, queries are pooled from as many even cells as `pool` lays.
A token's origin is the middle of the patches its query is pooled from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_prumerge.methods.base import Reduced, ReducerSettings, VisionReducer, VisionTokens
from llava_prumerge.methods.cost import TokensLeft
from llava_prumerge.methods.image_tokens import LanguageShape
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.cells import best_rows, lay_cells
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.select import mix
from llava_prumerge.ops.sines import sines

Layout = tuple[Tensor, Tensor]
"""What queries are pooled by [K, P], and the middle patch of each [K]."""


@dataclass(frozen=True, kw_only=True)
class MetaCompressSettings(ReducerSettings):
    """Without a budget kernel and stride alone decide how many tokens stay, as in the paper."""

    kernel: int = setting(3, "side of the windows that queries are pooled from", at_least(1), source="ours")
    stride: int = setting(3, "patches between two windows", at_least(1), source="ours")
    width: int = setting(64, "d_c, of queries and keys", at_least(1), source="ours")
    places: Literal["sines", "none"] = setting(
        "sines", "E, added to the tokens before queries and keys are made", source="ours"
    )
    site: Literal["projected", "tower"] = setting(
        "projected", "X is what comes out of the projector, or what goes into it", source="our reading"
    )
    lambda_entropy: float = setting(1.0, "weight of the mean entropy of P's rows, in nats", at_least(0), source="paper")
    lambda_collapse: float = setting(
        1.0, "weight of the largest sum of a column of P, the mean over images", at_least(0), source="paper"
    )


@register("meta_compress")
class MetaCompress(VisionReducer):
    """Mix all tokens into few by a learnt matrix that the tokens themselves decide."""

    paper = "MetaCompress, CVPR 2026 (arXiv 2603.21701), our reading"
    distils = True
    settings: MetaCompressSettings
    query: nn.Parameter | None
    key: nn.Parameter | None
    beta: nn.Parameter | None

    def __init__(self, settings: MetaCompressSettings | None = None) -> None:
        super().__init__(settings)
        self.site = self.settings.site
        self.query = self.key = self.beta = None
        self._terms: list[Tensor] = []

    def grow(self, shape: LanguageShape) -> None:
        """Make W_q and W_k [d_c, C] and beta [d_c]."""
        wide = shape.hidden if self.site == "projected" and shape.hidden else shape.width
        self.query, self.key = (nn.Parameter(torch.empty(self.settings.width, wide)) for _ in range(2))
        self.beta = nn.Parameter(torch.empty(self.settings.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values: W_q = W_k, drawn so that lengths and angles are kept about as they are, and beta = 1."""
        if self.query is None or self.key is None or self.beta is None:
            return
        nn.init.normal_(self.query, std=self.query.shape[1] ** -0.5)
        with torch.no_grad():
            self.key.copy_(self.query)
        nn.init.ones_(self.beta)

    def tokens_left(self, patches: int) -> TokensLeft:
        """The budget, or the windows of a square grid."""
        if self.budget is not None:
            return super().tokens_left(patches)
        side = math.isqrt(patches)
        per_side = len(window_starts(side, self.settings.kernel, self.settings.stride))
        return TokensLeft(max(1, per_side**2), "its windows", exact=side**2 == patches)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C] = P X."""
        images, patches = image.features.shape[:2]
        if self.query is None:
            self.grow_alone(image.features)
        pooling, centres = (part.to(image.features.device) for part in self._layout(image.grid))
        counts = torch.full((images,), len(centres), device=image.features.device)
        kept = self.width(image, counts)
        origin = centres.expand(images, -1)
        valid = torch.ones_like(origin, dtype=torch.bool)
        if kept == patches:  # nothing to compress
            return image.features, valid, origin
        mixing = self.mixing(image, pooling)
        if self.training and torch.is_grad_enabled():
            self._terms.append(self._regularisers(mixing))
        return mix(mixing, image.features), valid, origin

    def mixing(self, image: VisionTokens, pooling: Tensor) -> Tensor:
        """P, whose rows sum to 1. [N, K, P] float32"""
        query, key, beta = self.query, self.key, self.beta
        wide = image.features.shape[2]
        if query is None or key is None or beta is None or query.shape[1] != wide:
            wanted = 0 if query is None else query.shape[1]
            raise ReductionError(f"{self.name}: features are {wide} wide, and its weights {wanted}")
        known = image.features.float()
        if self.settings.places == "sines":
            known = known + table(image.grid, wide).to(known.device)
        asked = F.linear(pooling @ known, query.float()) * beta.float()  # [N, K, d_c]
        logits = asked @ F.linear(known, key.float()).transpose(1, 2)
        return (logits.float() / math.sqrt(len(beta))).softmax(dim=2)

    def _layout(self, grid: tuple[int, int]) -> Layout:
        """How queries are pooled."""
        if self.budget is None:
            return windows(grid, self.settings.kernel, self.settings.stride)
        return cells(grid, min(self.budget, grid[0] * grid[1]))

    def _regularisers(self, mixing: Tensor) -> Tensor:
        """The entropy of a row of P, the mean, and the largest sum of a column, both weighted."""
        least = torch.finfo(mixing.dtype).tiny  # the slope of p log p is without end at 0, and shares do reach it
        entropy = -(mixing * mixing.clamp(min=least).log()).sum(dim=2).mean()
        collapse = mixing.sum(dim=1).amax(dim=1).mean()
        return self.settings.lambda_entropy * entropy + self.settings.lambda_collapse * collapse

    def forget(self) -> None:
        """See the contract."""
        self._terms = []

    def loss(self) -> Tensor | None:
        """lambda_entropy * L_entropy + lambda_collapse * L_collapse of the last pass; None without images."""
        return torch.stack(self._terms).mean() if self._terms else None

    def distil(self, own: Tensor, full: Tensor) -> Tensor:
        """KL(full model's answers || its own), added up over tokens."""
        mine, theirs = (logits.float().log_softmax(dim=-1) for logits in (own, full))
        return F.kl_div(mine, theirs, reduction="sum", log_target=True)


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def table(grid: tuple[int, int], width: int) -> Tensor:
    """E of every patch. [P, C]"""
    return sines(grid, width)


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def cells(grid: tuple[int, int], count: int) -> Layout:
    """So many even cells of a grid."""
    laid = lay_cells(torch.tensor([count]), torch.tensor([best_rows(count, *grid)]), count, grid)
    return laid.averages()[0], laid.centres()[0]


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def windows(grid: tuple[int, int], kernel: int, stride: int) -> Layout:
    """The windows of `torch.nn.functional.avg_pool2d`; one that would not fit is cut to the grid."""
    averages, middles = [], []
    for side in grid:
        starts = window_starts(side, kernel, stride)
        index, size = torch.arange(side), min(kernel, side)
        behind = index - torch.tensor(starts)[:, None]  # [windows, side]
        averages.append(((behind >= 0) & (behind < size)).float() / size)
        middles.append(torch.tensor(starts) + size // 2)
    return torch.kron(*averages), (middles[0][:, None] * grid[1] + middles[1]).flatten()


def window_starts(side: int, kernel: int, stride: int) -> range:
    """Where the windows of one side begin."""
    return range(0, side - min(kernel, side) + 1, stride)
