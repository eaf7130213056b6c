"""PAR: clusters of similar visual tokens are retrieved by the prompt, and a router keeps or merges inside each.

PAR: Prompt-Aware Token Reduction Method for Efficient Large Multimodal Models, Liu et al. (arXiv 2410.07278 v2; `trsm`
is v1 of the same paper). Only the abstract and secondary summaries could be read, and the authors published no code.
From them come the four steps and the compression of 89%; every formula is our reading:

1. Prompt rewriting. The authors put the prompt into a template before it is embedded. A reducer sees embeddings, no
   words, so the other side of the same coin is done: `before` and `after` leave out the tokens of the conversation's
   own template, and `weights: contrast` turns down tokens that match all patches alike, as function words do.
2. Graph. Patches whose mean-centred cosine reaches `threshold` are joined; clusters are the connected parts.
3. Retrieval, against external redundancy: clusters by falling relevance (best weighted match of a prompt token with the
   cluster's members on average) until they hold `retrieve` of the patches. The others are dropped.
4. Router, against internal redundancy: each retrieved cluster keeps its most relevant token. What room is left goes to
   the most relevant of the others, and the rest is averaged into the nearest kept token of its cluster.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import SPACES, Reduced, ShareReducer, VisionTokens, is_whole, register
from llava_prumerge.ops.clusters import best_of_cluster, connected_labels, membership, similarity_graph
from llava_prumerge.ops.merge import group_weights, mix, nearest_centres, pick
from llava_prumerge.ops.retrieval import (
    CENTRES,
    centred,
    contrast_weights,
    prompt_similarity,
    queries_of,
    relevance,
)
from llava_prumerge.ops.select import ranks_of, top_mask

WEIGHTS = ("contrast", "even")
MERGES = ("mean", "none")


@register("par")
class PAR(ShareReducer):
    """Keep tokens of the clusters that the prompt asks for, in raster order. All fields are our reading; training-free.

    Args:
        keep: share of the patches (0.11: a compression of 89%).
        threshold: cosine from which two patches are joined, in (0, 1]; 0.8 is where pocket scenes fall into several
            clusters.
        retrieve: share of the patches that the retrieved clusters hold together at least.
        weights: of prompt tokens: "contrast" (see `ops.retrieval.contrast_weights`) or "even".
        before, after: prompt tokens of the conversation's template, at its beginning and end, that ask nothing.
        space: "llm" (projected tokens and prompt embeddings) or "clip" (where the tower comes with its text side).
        centre: means subtracted before any cosine: "both", "visual", "none" (see `ops.retrieval.centred`).
        rounds: of the search for connected clusters (see `ops.clusters.connected_labels`).
        merge: "mean", or "none" for a router that drops what it does not keep.
        Others: see `ShareReducer`.
    """

    site, reads_prompt = "projected", True

    def __init__(
        self,
        keep: float | str = 0.11,
        threshold: float = 0.8,
        retrieve: float | str = 0.5,
        weights: str = "contrast",
        before: int = 0,
        after: int = 0,
        space: str = "llm",
        centre: str = "both",
        rounds: int = 10,
        merge: str = "mean",
        **settings: Any,
    ) -> None:
        super().__init__(keep=keep, **settings)
        self.check(weights in WEIGHTS, "weights", weights, f"one of {', '.join(WEIGHTS)}")
        self.check(is_whole(before, 0), "before", before, "a whole number of at least 0")
        self.check(is_whole(after, 0), "after", after, "a whole number of at least 0")
        self.check(space in SPACES, "space", space, f"one of {', '.join(SPACES)}")
        self.check(centre in CENTRES, "centre", centre, f"one of {', '.join(CENTRES)}")
        self.check(is_whole(rounds, 1), "rounds", rounds, "a positive whole number")
        self.check(merge in MERGES, "merge", merge, f"one of {', '.join(MERGES)}")
        self.threshold = float(self.as_share("threshold", threshold))
        self.retrieve = self.as_share("retrieve", retrieve)
        self.weights, self.before, self.after, self.space, self.centre = weights, before, after, space, centre
        self.rounds, self.merge = rounds, merge

    def repeats(self, patches: int, kept: int) -> int:
        """Rounds of label propagation."""
        return self.rounds

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D]."""
        given = image.matched(self.space)
        size = self.width(image, self.counts(image), *given[:2])
        with torch.no_grad():
            visual, text = centred(*given, self.centre)
            labels = connected_labels(similarity_graph(visual, self.threshold), self.rounds)
            keep, retrieved = self.routed(prompt_similarity(visual, text), given[2], labels, size)
        features, valid, origin = pick(image.features, keep, size)
        if self.merge == "mean":
            with torch.no_grad():
                gathered = nearest_centres(visual, origin, retrieved & ~keep, clusters=labels)
                mixing = group_weights(gathered, origin)
            features = mix(mixing, image.features)
        return features, valid, origin

    def routed(self, similarity: Tensor, mask: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Retrieve clusters and choose what stays. [N, T, P], [N, T], [N, P] -> keep [N, P], retrieved [N, P] bool"""
        queries = queries_of(mask, self.before, self.after)
        weights = contrast_weights(similarity, queries) if self.weights == "contrast" else queries.float()
        patches = labels.shape[1]
        members = membership(labels)  # [N, P, P], a row for each possible cluster
        sizes = members.sum(dim=2)
        of_clusters = similarity @ members.transpose(1, 2) / sizes.clamp(min=1)[:, None]  # [N, T, P]
        order = ranks_of(relevance(of_clusters, weights).masked_fill(sizes == 0, -1.0))  # [N, P] place of each cluster
        in_order = torch.zeros_like(sizes).scatter(1, order, sizes)
        before = (in_order.cumsum(dim=1) - in_order).gather(1, order)  # patches in the clusters that come first
        wanted = max(size, math.ceil(self.retrieve * patches))
        taken = (before < wanted) & (order < size)  # no more clusters than tokens: each keeps one
        retrieved = taken.gather(1, labels)
        ranks = ranks_of(relevance(similarity, weights))
        heads = best_of_cluster(labels, ranks)
        return top_mask(-(ranks + patches * (~heads).long() + 2 * patches * (~retrieved).long()), size), retrieved
