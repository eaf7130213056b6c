"""PruneSID: principal components group the patches, and each group has a quota of its most attended different ones.

Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity, Fang et
al., ICLR 2026 (arXiv 2603.09480). The rule is the authors' code (ZhengyaoFang/PruneSID 4ef17d9). A quarter as many
groups as tokens: a patch belongs to the component on which it loads most, of the sigmoid of its features. In a group
patches by falling class attention of the block that made the features, those after a patch they are more alike than a
threshold go behind all others; quotas by how many are not. The class token is one of the tokens and comes first, then
group by group. Departure: the components are those of an exact singular value decomposition, where the release draws
a random approximation, whose choices between two seeds share 20 to 38 of 64 patches on random images; so an image is
always reduced alike. Where K is above 32 the threshold is above the mean similarity so often that few or none are
held back, as released.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import BlockReducer, BlockSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import above, at_least, setting
from llava_prumerge.ops.greedy import cosines
from llava_prumerge.ops.groups import component_labels, filled_in_turn, group_sums, held_back, ranks_within
from llava_prumerge.ops.select import behind_token, pack, ranks_of, raster_priority, select


@dataclass(frozen=True, kw_only=True)
class PruneSIDSettings(BlockSettings):
    """By default 64 of 576 tokens, the class token among them."""

    per_group: int = setting(4, "tokens for each of which there is one group", at_least(1), source="released code")
    threshold: float = setting(
        32.0,
        "tokens at which the similarity that holds a patch back is the mean of the image; it grows with their number",
        above(0),
        source="released code",
    )
    most: int = setting(5, "patches of a group for every 64 tokens, at first", at_least(1), source="released code")
    class_token: bool = setting(
        True, "the class token is one of the tokens, where the tower has one", source="released code"
    )


@register("prunesid")
class PruneSID(BlockReducer):
    """Keep the class token and, group by group, attended patches that are unlike each other."""

    paper = "PruneSID, Fang et al., ICLR 2026 (arXiv 2603.09480)"
    call_limit = CallLimit(
        150, step=3, waits=1, why="a decomposition, then quotas in steps; each patch may hold back later ones"
    )
    settings: PruneSIDSettings

    def repeats(self, patches: int, kept: int) -> int:
        """One step for each patch that may hold others back."""
        return patches if kept < patches else 0

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]; the origin of the class token is -1."""
        scores, patches = self.attention(image), image.features.shape[1]
        size = self.width(image, self.counts(image))
        takes = self.settings.class_token and 1 < size < patches
        token = image.class_token if takes else None
        wanted = size - (token is not None)
        if size == patches:
            keep = torch.ones_like(scores, dtype=torch.bool)
            priority = raster_priority(keep)
        else:
            with torch.no_grad():
                keep, priority = self.chosen(image, scores, size, wanted)
        index, valid = pack(keep, priority, wanted)
        kept = select(image.features, index), valid, index
        return kept if token is None else behind_token(token, kept)

    def chosen(self, image: VisionTokens, scores: Tensor, size: int, wanted: int) -> tuple[Tensor, Tensor]:
        """Which patches stay, [N, P] bool, and in what order they leave. [N, P]"""
        patches = scores.shape[1]
        groups, number = component_labels(image.features.float().sigmoid(), max(1, size // self.settings.per_group))
        place = ranks_of(scores)
        similarity = cosines(image.features)
        pairs = patches * (patches - 1)
        mean = (similarity.sum(dim=(1, 2)) - similarity.diagonal(dim1=1, dim2=2).sum(dim=1)) / pairs  # [N]
        limit = size / self.settings.threshold * mean
        rivals = (similarity > limit[:, None, None]) & (groups[:, None] == groups[..., None])
        free = ~held_back(rivals, place)
        ranks = ranks_within(free.long() * patches - place, groups, number)
        sizes, survivors = (group_sums(part, groups, number) for part in (torch.ones_like(groups), free.long()))
        keep = ranks < self.quotas(sizes, survivors, size, wanted).gather(1, groups)
        return keep, -(groups * patches + ranks)

    def quotas(self, sizes: Tensor, survivors: Tensor, size: int, wanted: int) -> Tensor:
        """Patches that each group gives, `wanted` in all. [N, G]"""
        low = sizes.clamp(max=1)
        cap = torch.minimum(sizes, survivors).clamp(max=self.settings.most * -(-size // 64))
        more = torch.arange(size + 1, device=sizes.device)  # by which all caps are raised
        reached = torch.minimum(cap[:, None] + more[:, None], sizes[:, None]).sum(dim=2)  # [N, more]
        cap = torch.minimum(cap + (reached < size).sum(dim=1, keepdim=True), sizes)
        spare = (wanted - low.sum(dim=1, keepdim=True)).clamp(min=0)
        share = survivors / survivors.sum(dim=1, keepdim=True)
        ends = (spare * share.cumsum(dim=1)).round().long()  # half to even, as released
        quota = torch.minimum(low + ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1])), cap)
        order = survivors.argsort(dim=1, descending=True, stable=True)
        room = (cap - quota).gather(1, order)
        extra = filled_in_turn(room, wanted - quota.sum(dim=1, keepdim=True))
        return quota.scatter_add(1, order, extra)
