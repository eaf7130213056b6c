"""ToMe: rounds of bipartite matching merge the most similar tokens, down to the budget.

Token Merging: Your ViT But Faster, Bolya et al., ICLR 2023 (arXiv 2210.09461), Sec. 3. The matching and the
size-weighted means are the paper's and the authors' code's (facebookresearch/ToMe): tokens alternate between A and B,
A's strongest links on keys averaged over heads merge. Departure: ToMe merges inside every block of the tower, with the
keys of each. Here the tower stays as it is, and all rounds run on its output with the keys of one block; a merged
token's key is the mean of its patches' keys. Where the baselines called "ToMe" in LLaVA papers merge is not stated in
them; this place is our reading, and so is the number of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.matching import bipartite_merge, merge_schedule
from llava_prumerge.ops.merge import mix


@dataclass(frozen=True, kw_only=True)
class ToMeSettings(BlockSettings):
    """By default 64 of 576 tokens."""

    rounds: int = setting(
        8,
        "rounds of matching, over which the merges are spread evenly; more follow where no round may merge more than half",
        at_least(1),
        source="our reading; ToMe merges once per block",
    )


@register("tome")
class ToMe(BlockReducer):
    """Merge tokens into means over the patches they stand for, in raster order of the patch each was merged into."""

    paper = "ToMe, Bolya et al., ICLR 2023 (arXiv 2210.09461)"
    settings: ToMeSettings

    def repeats(self, patches: int, kept: int) -> int:
        """The rounds it takes."""
        return len(merge_schedule(patches, kept, self.settings.rounds))

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]."""
        keys = image.block(self.own).head_keys
        size = self.width(image, self.counts(image), keys)
        with torch.no_grad():
            mixing, origin = bipartite_merge(keys, merge_schedule(keys.shape[1], size, self.settings.rounds))
        return mix(mixing, image.features), torch.ones_like(origin, dtype=torch.bool), origin
