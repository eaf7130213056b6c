"""PruMerge and PruMerge+: outliers of the class attention stay, similar tokens are merged into them.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388): AITS (outlier selection, Sec. 3.2), TS (token supplement by similar keys,
Sec. 3.3) and Algorithm 1. The defaults are the authors' released code (42Shawn/LLaVA-PruMerge, 5632f5a), which departs from the
text: one head of the whole width, keys of the block after the features, k = 32 neighbours among all other tokens, class attention as
unnormalised weights, one extra token for everything dropped, no re-sorting.

Departure from the released code: it pools the outlier fence over the batch and, for PruMerge+, works for one image only. Here the rule
is applied to each image. On single images both are equal; where the release divides by zero (no outlier, a third of all tokens
outliers) PruMerge+ uses the nearest stride that exists.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, ReductionError, VisionReducer, VisionTokens, register
from llava_prumerge.ops.merge import MERGES, leftover_weights, mix, nearest_weights
from llava_prumerge.ops.scores import outlier_mask
from llava_prumerge.ops.select import even_mask, pack, raster_priority, stride_mask, top_mask

ORDERS = ("attention", "raster")
GRIDS = ("stride", "even")


def _as_ratio(value: float | str | None, name: str) -> float | None:
    """A share of the tokens; "1/8" is read as the fraction it is."""
    if value is None:
        return None
    try:
        ratio = float(Fraction(value)) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ReductionError(f"{name}: ratio {value!r} is not a number or a fraction such as 1/8") from error
    if not 0 < ratio <= 1:
        raise ReductionError(f"{name}: ratio {value!r} is not in (0, 1]")
    return ratio


@register("prumerge")
class PruMerge(VisionReducer):
    """Keep the outliers of the class attention and merge their nearest tokens into them.

    Args:
        budget: tokens each image leaves with, the extra token included; None counts outliers per image.
        ratio: the release's non-adaptive mode: this share of the patches is kept, plus the extra token. Not together with budget.
        neighbours: k of the merge (the paper gives none; the release has 32).
        merge: "sum" (released), "neighbours", "average" (see `nearest_weights`).
        extra: append one token that sums up everything dropped, weighted by class attention.
        order: "attention" (released: falling class attention) or "raster".
        iqr_factor, per_head, positions: see `VisionReducer`.
    """

    def __init__(
        self,
        budget: int | None = None,
        ratio: float | str | None = None,
        neighbours: int = 32,
        merge: str = "sum",
        extra: bool = True,
        order: str = "attention",
        iqr_factor: float = 1.5,
        per_head: bool = False,
        positions: str = "contiguous",
    ) -> None:
        super().__init__(budget=budget, iqr_factor=iqr_factor, per_head=per_head, positions=positions)
        self.ratio = _as_ratio(ratio, self.name)
        if budget is not None and ratio is not None:
            raise ReductionError(f"{self.name}: give budget={budget} or ratio={ratio}, not both")
        if merge not in MERGES:
            raise ReductionError(f"{self.name}: merge {merge!r} is not one of {', '.join(MERGES)}")
        if order not in ORDERS:
            raise ReductionError(f"{self.name}: order {order!r} is not one of {', '.join(ORDERS)}")
        if not isinstance(neighbours, int) or neighbours < 0:
            raise ReductionError(f"{self.name}: neighbours {neighbours!r} is not a whole number of at least 0")
        self.neighbours, self.merge, self.extra, self.order = neighbours, merge, extra, order

    @property
    def fewest(self) -> int:
        """Tokens that class attention has to select: none where the extra token alone still stands for the image."""
        return 0 if self.extra else 1

    def important(self, scores: Tensor) -> Tensor:
        """What the class attention selects in each image. [N, P] bool"""
        patches = scores.shape[1]
        if self.budget is not None:
            return top_mask(scores, patches if self.budget >= patches else self.budget - self.extra)
        if self.ratio is not None:
            return top_mask(scores, max(int(patches * self.ratio), self.fewest))
        outliers = outlier_mask(scores, self.iqr_factor)
        return outliers | top_mask(scores, self.fewest) if self.fewest else outliers

    def kept(self, image: VisionTokens, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What stays, and in which order. -> keep [N, P] bool, priority [N, P]"""
        keep = self.important(scores)
        return keep, raster_priority(keep) if self.order == "raster" else scores

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C], the extra token last of the valid ones."""
        scores = image.attention(self.per_head)
        keep, priority = self.kept(image, scores)
        counts = keep.sum(dim=1)
        index, valid = pack(keep, priority, self.width(image, counts) + self.extra)
        return self.merged(image, scores, index, valid, counts, ~keep)

    def width(self, image: VisionTokens, counts: Tensor) -> int:
        """Without the extra token, which no count includes."""
        size = super().width(image, counts)
        if torch.compiler.is_compiling() and self.budget is not None and self.budget < image.features.shape[1]:
            size -= self.extra
        return size

    def merged(
        self,
        image: VisionTokens,
        scores: Tensor,
        index: Tensor,
        valid: Tensor,
        counts: Tensor | int,
        dropped: Tensor,
        pool: Tensor | None = None,
    ) -> Reduced:
        """Merge into the tokens at index [N, K], and put the extra token after the last of them.

        An image that keeps `counts` tokens ([N] or a number) has a place for the extra one in its row of index, unless
        nothing was dropped.
        """
        mixing = nearest_weights(image.keys, scores, index, self.neighbours, self.merge, pool)
        origin = index.masked_fill(~valid, -1)
        if self.extra:
            number = torch.arange(index.shape[1], device=index.device)
            place = number == (counts if isinstance(counts, int) else counts[:, None])  # [N, K]
            rest = leftover_weights(scores, dropped, normalise=self.merge == "average")
            mixing = torch.where(place[..., None], rest, mixing)  # [N, K, P]
            valid = valid | place
        return mix(mixing, image.features), valid, origin


@register("prumerge_plus")
class PruMergePlus(PruMerge):
    """PruMerge, and tokens sampled evenly over the image beside the outliers.

    Args:
        grid: "stride" (released: every int(int(1/r)/3)-th index below the last one, r the share of outliers, duplicates dropped) or
            "even" (three times as many as outliers, spread evenly over the tokens not yet kept, so that the number is exact and the last
            patch can be reached).
        share: with a budget, the part of it that the class attention selects; the rest is sampled evenly (1:3 as in the release).
        ratio: the release's fixed mode for training: this share by attention and as many at the stride int(1/ratio) from half of it,
            duplicates kept, so that every image has the same number.
        Others: see `PruMerge`.
    """

    def __init__(self, grid: str = "stride", share: float = 0.25, **settings: object) -> None:
        super().__init__(**settings)
        if grid not in GRIDS:
            raise ReductionError(f"{self.name}: grid {grid!r} is not one of {', '.join(GRIDS)}")
        if not 0 <= share <= 1:
            raise ReductionError(f"{self.name}: share {share!r} is not in [0, 1]")
        self.grid, self.share = grid, share

    def kept(self, image: VisionTokens, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Outliers by falling attention, then the grid in raster order (or all in raster order). -> [N, P], [N, P]"""
        patches = scores.shape[1]
        if self.budget is not None and self.budget < patches:
            wanted = self.budget - self.extra
            count = round(wanted * self.share)
            outliers = top_mask(scores, count)
            grid = even_mask(~outliers, wanted - count)
        else:
            outliers = self.important(scores)
            counts = outliers.sum(dim=1)
            if self.grid == "even":
                grid = even_mask(~outliers, 3 * counts)
            else:
                strides = (patches // (3 * counts.clamp(min=1))).clamp(min=1)  # int(int(1/r)/3) without its rounding
                grid = stride_mask(strides, patches - 1, patches)
        keep = outliers | grid
        if self.order == "raster":
            return keep, raster_priority(keep)
        grid_last = raster_priority(keep, -1)  # scores are positive
        return keep, torch.where(outliers, scores, grid_last)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C], the extra token last of the valid ones."""
        if self.ratio is None:
            return super().forward(image)
        scores = image.attention(self.per_head)
        images, patches = scores.shape
        count, step = max(int(patches * self.ratio), self.fewest), int(1 / self.ratio)
        top = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
        grid = torch.arange(min(int(step / 2), patches - 1), patches - 1, step, device=scores.device).expand(images, -1)
        index = torch.cat([top, grid], dim=1)  # [N, K], with duplicates
        kept = index.shape[1]
        if kept > patches:
            raise ReductionError(
                f"{self.name}: ratio {self.ratio:g} and its grid make more than the {patches} tokens there are"
            )
        self.width(image, scores.new_full((images,), kept))
        if self.order == "raster":
            index = index.sort(dim=1, stable=True).values
        rest = self._released_rest(index, patches)
        dropped = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, rest, True)
        pool = torch.cat([index, rest], dim=1)  # [N, P]
        index = pool[:, : kept + self.extra]  # with a place for the extra token
        valid = (torch.arange(index.shape[1], device=index.device) < kept).expand(images, -1)
        return self.merged(image, scores, index, valid, kept, dropped, pool)

    @staticmethod
    def _released_rest(index: Tensor, patches: int) -> Tensor:
        """What the release takes for the complement: for each duplicate in index, the lowest-numbered dropped token is missing.

        [N, K] -> [N, P - K]
        """
        numbers = torch.arange(patches, device=index.device).expand(index.shape[0], -1)
        return numbers.scatter(1, index, 0).sort(dim=1).values[:, index.shape[1] :]
