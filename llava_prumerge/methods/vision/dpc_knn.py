"""DPC-KNN: clusters around density peaks, as many as the image has, and every token is the mean of its cluster.

Density peaks clustering with k nearest neighbours, Du et al., Knowledge-Based Systems 2016, as SeTok (Wu et al., ICLR
2025, arXiv 2406.05127) and SparseVLM make tokens with it. A patch is dense where its nearest neighbours are near, and
it is a centre where it is dense and far from every denser one; each patch goes to the nearest centre by Euclidean
distance. The clustering equals SparseVLM's (`neighbours: null, order: fitness`). Ours are: without a budget the
centres are the outliers of density times distance by Tukey's fence, where SeTok has a threshold that depends on the
features' scale (`threshold: 0.5` is that); of equal densities the lower index counts as the denser, where both
releases add noise; the mean in place of SeTok's trained layers. The image decides how many tokens it takes, its
complexity and not its subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, ReducerSettings, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import CountingReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import above, at_least, setting
from llava_prumerge.ops.clusters import density_peaks, nearest_peaks
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.select import mix, outlier_count, pack, raster_priority, top_mask


@dataclass(frozen=True, kw_only=True)
class DpcKnnSettings(ReducerSettings):
    """Without a budget an image keeps as many tokens as it has peaks."""

    neighbours: int | None = setting(
        5,
        "nearest patches that make the density, the patch itself among them; null, with a budget: as many as clusters, "
        "as SparseVLM has it",
        at_least(1),
        source="TCFormer",
    )
    iqr_factor: float = setting(1.5, "Tukey's factor of the outlier rule that counts peaks", source="ours")
    threshold: float | None = setting(
        None,
        "density times distance above which a patch is a centre, in place of the outlier rule; SeTok's is 0.5",
        above(0),
        source="SeTok",
    )
    order: Literal["raster", "fitness"] = setting(
        "raster", "raster by centre, or fitness: the best centre first, as SparseVLM has it", source="ours"
    )

    def check(self) -> None:
        if self.neighbours is None and self.budget is None:
            raise ReductionError("neighbours=null takes as many as there are clusters and needs a budget")


@register("dpc_knn")
class DpcKnn(CountingReducer):
    """Merge every patch into the mean of its cluster."""

    paper = "DPC-KNN, Du et al. 2016, as in SeTok, Wu et al., ICLR 2025 (arXiv 2406.05127)"
    call_limit = CallLimit(80, why="densities, peaks and clusters are found one after the other")
    settings: DpcKnnSettings

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]; the origin of a token is its centre."""
        images, patches, width = image.features.shape
        device = image.features.device
        real = torch.ones(images, patches, dtype=torch.bool, device=device)
        with torch.no_grad():
            states = image.features.float()
            distances = torch.cdist(states, states) / width**0.5  # [N, P, P]
            near = self.settings.neighbours or min(self.budget or patches, patches)
            fitness = density_peaks(distances, real, torch.full((images,), near, device=device))
            counts = self.peaks(fitness)
            size = self.width(image, counts, fitness)
            keep = top_mask(fitness, counts)
            order = fitness if self.settings.order == "fitness" else raster_priority(keep)
            index, valid = pack(keep, order, size)
            members = nearest_peaks(distances, real, index, valid)  # [N, K, P]
            mixing = members / members.sum(dim=2, keepdim=True).clamp(min=1)
        return mix(mixing, image.features), valid, index.masked_fill(~valid, -1)

    def peaks(self, fitness: Tensor) -> Tensor:
        """How many centres each image has. [N, P] -> [N]"""
        patches = fitness.shape[1]
        if self.budget is not None:
            return torch.full_like(fitness[:, 0], min(self.budget, patches), dtype=torch.long)
        if self.settings.threshold is not None:
            return (fitness > self.settings.threshold).sum(dim=1).clamp(min=1)
        return outlier_count(fitness, self.settings.iqr_factor).clamp(1, patches)
