"""ToMe: rounds of bipartite matching merge the most similar tokens, down to the budget.

Token Merging: Your ViT But Faster, Bolya et al., ICLR 2023 (arXiv 2210.09461), Sec. 3. The matching and the
size-weighted means are the paper's and the authors' code's (facebookresearch/ToMe): tokens alternate between A and B,
A's strongest links on keys averaged over heads merge, and the next round goes over A's rest and B in this order. The
class token takes its place in the alternation and is protected, as released for towers that have one; it is not passed
on. Departure: ToMe merges inside every block of the tower, with the
keys of each. Here the tower stays as it is, and all rounds run on its output with the keys of one block; a merged
token's key is the mean of its patches' keys. Where the baselines called "ToMe" in LLaVA papers merge is not stated in
them; this place is our reading, and so is the number of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.matching import bipartite_merge, merge_schedule
from llava_prumerge.ops.select import mix


@dataclass(frozen=True, kw_only=True)
class ToMeSettings(BlockSettings):
    """By default 64 of 576 tokens."""

    rounds: int = setting(
        8,
        "rounds of matching, over which the merges are spread evenly; more follow where no round may merge more than half",
        at_least(1),
        source="our reading; ToMe merges once per block",
    )
    class_token: bool = setting(
        True,
        "the class token takes part in the alternation and is protected, where the tower has one",
        source="released code",
    )
    order: Literal["released", "raster"] = setting(
        "released",
        "released puts what never moved before what was merged into, raster sorts by the patch merged into",
        source="released code",
    )


@register("tome")
class ToMe(BlockReducer):
    """Merge tokens into means over the patches they stand for."""

    paper = "ToMe, Bolya et al., ICLR 2023 (arXiv 2210.09461)"
    call_limit = CallLimit(step=33, why="rounds of matching, each on what the one before left")
    settings: ToMeSettings

    def repeats(self, patches: int, kept: int) -> int:
        """The rounds it takes."""
        return len(merge_schedule(patches, kept, self.settings.rounds))

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]."""
        block, patches = image.block(self.own), image.features.shape[1]
        size = self.width(image, self.counts(image), block.head_keys)
        keys = block.mean_keys
        protected = self.settings.class_token and keys.shape[1] == patches + 1
        with torch.no_grad():
            rounds = merge_schedule(patches, size, self.settings.rounds)
            mixing, origin = bipartite_merge(keys if protected else block.head_keys, rounds, protected)
        if self.settings.order == "raster":
            order = origin.argsort(dim=1)
            mixing, origin = mixing.gather(1, order[..., None].expand_as(mixing)), origin.gather(1, order)
        return mix(mixing, image.features), torch.ones_like(origin, dtype=torch.bool), origin
