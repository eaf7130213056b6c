"""PruMerge and PruMerge+: outliers of the class attention stay, similar tokens are merged into them.

LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388): AITS (outlier selection, Sec. 3.2), TS (token supplement by similar keys,
Sec. 3.3) and Algorithm 1. The defaults are the authors' released code (42Shawn/LLaVA-PruMerge, 5632f5a), which departs from the
text: one head of the whole width, keys of the block after the features, k = 32 neighbours among all other tokens, class attention as
unnormalised weights, one extra token for everything dropped, no re-sorting.

Departure from the released code: it pools the outlier fence over the batch and, for PruMerge+, works for one image only. Here the rule
is applied to each image; `fence: batch` pools as the release does, with the same number of tokens for all images. On single images both are equal; where the release divides by zero (no outlier, a third of all tokens
outliers) PruMerge+ uses the nearest stride that exists. Where everything is kept the release still appends its extra token, of zeros:
577 of 576. `forward` gives it as released; an image has no place for it in a prompt, so that `__call__` leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import Benchmark, CallLimit, Expected, TokensLeft
from llava_prumerge.methods.reducers import FrameSettings, OutlierReducer, OutlierSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.select import (
    even_mask,
    leftover_weights,
    mix,
    nearest_weights,
    outlier_mask,
    pack,
    raster_priority,
    stride_mask,
    top_mask,
)


@dataclass(frozen=True, kw_only=True)
class PruMergeSettings(FrameSettings, OutlierSettings):
    """A budget includes the extra token."""

    ratio: float | None = setting(
        None,
        "the release's non-adaptive mode: class attention keeps this share of the patches in every image; not with budget",
        fraction(),
        source="released code, 1/8",
    )
    neighbours: int = setting(
        32,
        "k of the merge: how many of the most similar tokens a kept one takes up",
        at_least(0),
        source="released code",
    )
    merge: Literal["sum", "neighbours", "average"] = setting(
        "sum", "weights of the merge: sum as released, neighbours and average are normalised", source="released code"
    )
    extra: bool = setting(
        True, "append one token that sums up everything dropped, weighted by class attention", source="released code"
    )
    order: Literal["attention", "raster"] = setting(
        "attention", "order of what is kept: falling class attention, or that of the raster", source="released code"
    )

    fence: Literal["image", "batch"] = setting(
        "image",
        "outliers are counted in each image, or over all images of the batch, which then keep equally many",
        source="ours; released code: batch",
    )

    def check(self) -> None:
        if self.fence == "batch" and (self.budget is not None or self.ratio is not None):
            raise ReductionError("fence=batch counts outliers, which a budget or a ratio does not ask for")
        if self.budget is not None and self.ratio is not None:
            raise ReductionError(f"give budget={self.budget} or ratio={self.ratio:g}, not both")


@register("prumerge")
class PruMerge(OutlierReducer):
    """Keep the outliers of the class attention and merge their nearest tokens into them."""

    paper = "LLaVA-PruMerge, Shang et al., ICCV 2025 (arXiv 2403.15388)"
    expected = Expected(0.055, "the paper's mean; it differs from image to image")  # 5.5%: 32 of 576
    call_limit = CallLimit(40, why="the choice, its nearest neighbours and their weights")
    benchmarks: ClassVar[tuple[Benchmark, ...]] = (Benchmark.REDUCTION, Benchmark.LATENCY, Benchmark.TRAINING)
    settings: PruMergeSettings

    @property
    def fewest(self) -> int:
        """Tokens that class attention has to select: none where the extra token alone still stands for the image."""
        return 0 if self.settings.extra else 1

    def tokens_left(self, patches: int) -> TokensLeft:
        """Of the fixed mode; else see `VisionReducer`."""
        if self.settings.ratio is None or self.budget is not None:
            return super().tokens_left(patches)
        kept = self.selected(patches, self.settings.ratio) + self.sampled(patches, self.settings.ratio)
        return TokensLeft(min(kept + self.settings.extra, patches), "its ratio")

    def selected(self, patches: int, ratio: float) -> int:
        """Tokens that class attention selects in the fixed mode."""
        return max(int(patches * ratio), self.fewest)

    def sampled(self, patches: int, ratio: float) -> int:
        """Tokens that are sampled beside them."""
        return 0

    def important(self, scores: Tensor) -> Tensor:
        """What the class attention selects in each image. [N, P] bool"""
        patches = scores.shape[1]
        if self.budget is not None:
            return top_mask(scores, patches if self.budget >= patches else self.budget - self.settings.extra)
        if self.settings.ratio is not None:
            return top_mask(scores, self.selected(patches, self.settings.ratio))
        if self.settings.fence == "batch":
            share = outlier_mask(scores.flatten()[None], self.settings.iqr_factor).double().mean()
            return top_mask(scores, max(int(patches * float(share) + 1e-9), self.fewest))
        outliers = outlier_mask(scores, self.settings.iqr_factor)
        return outliers | top_mask(scores, self.fewest) if self.fewest else outliers

    def kept(self, image: VisionTokens, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What stays, and in which order. -> keep [N, P] bool, priority [N, P]"""
        keep = self.important(scores)
        return keep, raster_priority(keep) if self.settings.order == "raster" else scores

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C], the extra token last of the valid ones."""
        scores = self.attention(image)
        keep, priority = self.kept(image, scores)
        counts = keep.sum(dim=1)
        index, valid = pack(keep, priority, self.width(image, counts) + self.settings.extra)
        return self.merged(image, scores, index, valid, counts, ~keep)

    def placed(self, reduced: Reduced, patches: int) -> Reduced:
        """Without the extra token of zeros of an image that keeps everything, which has no place."""
        features, valid, origin = reduced
        return features[:, :patches], valid[:, :patches], origin[:, :patches]

    def width(self, image: VisionTokens, counts: Tensor, *others: Tensor) -> int:
        """Without the extra token, which no count includes."""
        size = super().width(image, counts, *others)
        if torch.compiler.is_compiling() and self.budget is not None and self.budget < image.features.shape[1]:
            size -= self.settings.extra
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

        An image that keeps `counts` tokens ([N] or a number) has a place for the extra one in its row of index. With a
        budget of all tokens there is no extra one; where outliers and sample are everything, it is released as zeros.
        """
        if self.settings.extra and self.budget is None and index.shape[1] == image.features.shape[1]:
            index, valid = (torch.nn.functional.pad(part, (0, 1)) for part in (index, valid))
        mixing = nearest_weights(image.keys, scores, index, self.settings.neighbours, self.settings.merge, pool)
        origin = index.masked_fill(~valid, -1)
        if self.settings.extra:
            number = torch.arange(index.shape[1], device=index.device)
            place = number == (counts if isinstance(counts, int) else counts[:, None])  # [N, K]
            rest = leftover_weights(scores, dropped, normalise=self.settings.merge == "average")
            mixing = torch.where(place[..., None], rest, mixing)  # [N, K, P]
            valid = valid | place
        return mix(mixing, image.features), valid, origin


@dataclass(frozen=True, kw_only=True)
class PruMergePlusSettings(PruMergeSettings):
    """In the fixed mode (`ratio`) as many tokens again are sampled at the stride int(1/ratio), duplicates kept."""

    grid: Literal["stride", "even"] = setting(
        "stride",
        "the sample: stride as released (every int(int(1/r)/3)-th index below the last one, r the share of outliers, "
        "duplicates dropped), even for exactly three per outlier, spread over the tokens not yet kept",
        source="released code",
    )
    share: float = setting(
        0.25,
        "with a budget, the part of it that the class attention selects; the rest is sampled",
        fraction(zero=True),
        source="ours, 1:3 as in the release",
    )

    def check(self) -> None:
        super().check()
        if self.fence == "batch":
            raise ReductionError("fence=batch is PruMerge's; the released PruMerge+ works for one image only")


@register("prumerge_plus")
class PruMergePlus(PruMerge):
    """PruMerge, and tokens sampled evenly over the image beside the outliers."""

    expected = Expected(0.25, "the paper's mean; it differs from image to image")  # 144 of 576
    benchmarks = (*PruMerge.benchmarks, Benchmark.PADDING, Benchmark.THROUGHPUT)
    call_limit = CallLimit(52, why="as PruMerge, and a sample at a stride of each image's own")
    settings: PruMergePlusSettings

    def kept(self, image: VisionTokens, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Outliers by falling attention, then the grid in raster order (or all in raster order). -> [N, P], [N, P]"""
        patches = scores.shape[1]
        if self.budget is not None and self.budget < patches:
            wanted = self.budget - self.settings.extra
            count = round(wanted * self.settings.share)
            outliers = top_mask(scores, count)
            grid = even_mask(~outliers, wanted - count)
        else:
            outliers = self.important(scores)
            counts = outliers.sum(dim=1)
            if self.settings.grid == "even":
                grid = even_mask(~outliers, 3 * counts)
            else:
                strides = (patches // (3 * counts.clamp(min=1))).clamp(min=1)  # int(int(1/r)/3) without its rounding
                grid = stride_mask(strides, patches - 1, patches)
        keep = outliers | grid
        if self.settings.order == "raster":
            return keep, raster_priority(keep)
        grid_last = raster_priority(keep, -1)  # scores are positive
        return keep, torch.where(outliers, scores, grid_last)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C], the extra token last of the valid ones."""
        ratio = self.settings.ratio
        if ratio is None:
            return super().forward(image)
        scores = self.attention(image)
        images, patches = scores.shape
        top = scores.argsort(dim=1, descending=True, stable=True)[:, : self.selected(patches, ratio)]
        sample = self.sample(patches, ratio)
        grid = torch.arange(sample.start, sample.stop, sample.step, device=scores.device).expand(images, -1)
        index = torch.cat([top, grid], dim=1)  # [N, K], with duplicates
        kept = index.shape[1]
        if kept > patches:
            raise ReductionError(
                f"{self.name}: ratio {ratio:g} and its grid make more than the {patches} tokens there are"
            )
        self.width(image, scores.new_full((images,), kept))
        if self.settings.order == "raster":
            index = index.sort(dim=1, stable=True).values
        rest = self._released_rest(index, patches)
        dropped = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, rest, True)
        pool = torch.cat([index, rest], dim=1)  # [N, P]
        index = pool[:, : kept + self.settings.extra]  # with a place for the extra token
        valid = (torch.arange(index.shape[1], device=index.device) < kept).expand(images, -1)
        return self.merged(image, scores, index, valid, kept, dropped, pool)

    def sampled(self, patches: int, ratio: float) -> int:
        """Tokens that are sampled beside them, duplicates among them."""
        return len(self.sample(patches, ratio))

    @staticmethod
    def sample(patches: int, ratio: float) -> range:
        """Indices of the fixed mode's sample."""
        step = int(1 / ratio)
        return range(min(int(step / 2), patches - 1), patches - 1, step)

    @staticmethod
    def _released_rest(index: Tensor, patches: int) -> Tensor:
        """What the release takes for the complement: for each duplicate in index, the lowest-numbered dropped token is missing.

        [N, K] -> [N, P - K]
        """
        numbers = torch.arange(patches, device=index.device).expand(index.shape[0], -1)
        return numbers.scatter(1, index, 0).sort(dim=1).values[:, index.shape[1] :]
