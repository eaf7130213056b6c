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
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import PromptSettings, ShareReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.clusters import best_of_cluster, connected_labels, membership, similarity_graph
from llava_prumerge.ops.retrieval import centred, contrast_weights, prompt_similarity, queries_of, relevance
from llava_prumerge.ops.select import group_weights, mix, nearest_centres, pick, ranks_of, top_mask


@dataclass(frozen=True, kw_only=True)
class PARSettings(PromptSettings):
    """All fields are our reading. `before` and `after` take the template out of the prompt, see above."""

    keep_ratio: Fraction = setting(
        0.11, "share of the patches that stays", fraction(), source="abstract, a compression of 89%", formerly="keep"
    )
    threshold: float = setting(
        0.8,
        "cosine from which two patches are joined; at 0.8 pocket scenes fall into several clusters",
        fraction(),
        source="our reading",
    )
    retrieve: Fraction = setting(
        0.5, "share of the patches that the retrieved clusters hold together at least", fraction(), source="our reading"
    )
    weights: Literal["contrast", "even"] = setting(
        "contrast",
        "of prompt tokens: contrast turns down those that match all patches alike, even counts all the same",
        source="our reading",
    )
    rounds: int = setting(10, "rounds of the search for connected clusters", at_least(1), source="our reading")
    merge: Literal["mean", "none"] = setting(
        "mean", "mean averages what the router does not keep into its cluster, none drops it", source="our reading"
    )


@register("par")
class PAR(ShareReducer):
    """Keep tokens of the clusters that the prompt asks for, in raster order; training-free."""

    site, reads_prompt = "projected", True
    paper = "PAR, Liu et al. (arXiv 2410.07278 v2), our reading of the abstract"
    call_limit = CallLimit(
        140, step=7, why="it reads the prompt, for which a batch is unpacked, and clusters in rounds"
    )
    settings: PARSettings

    def repeats(self, patches: int, kept: int) -> int:
        """Rounds of label propagation."""
        return self.settings.rounds

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D]."""
        given = image.matched(self.settings.space)
        size = self.width(image, self.counts(image), *given[:2])
        with torch.no_grad():
            visual, text = centred(*given, self.settings.centre)
            labels = connected_labels(similarity_graph(visual, self.settings.threshold), self.settings.rounds)
            keep, retrieved = self.routed(prompt_similarity(visual, text), given[2], labels, size)
        features, valid, origin = pick(image.features, keep, size)
        if self.settings.merge == "mean":
            with torch.no_grad():
                gathered = nearest_centres(visual, origin, retrieved & ~keep, clusters=labels)
                mixing = group_weights(gathered, origin)
            features = mix(mixing, image.features)
        return features, valid, origin

    def routed(self, similarity: Tensor, mask: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Retrieve clusters and choose what stays. [N, T, P], [N, T], [N, P] -> keep [N, P], retrieved [N, P] bool"""
        queries = queries_of(mask, self.settings.before, self.settings.after)
        weights = contrast_weights(similarity, queries) if self.settings.weights == "contrast" else queries.float()
        patches = labels.shape[1]
        members = membership(labels)  # [N, P, P], a row for each possible cluster
        sizes = members.sum(dim=2)
        of_clusters = similarity @ members.transpose(1, 2) / sizes.clamp(min=1)[:, None]  # [N, T, P]
        order = ranks_of(relevance(of_clusters, weights).masked_fill(sizes == 0, -1.0))  # [N, P] place of each cluster
        in_order = torch.zeros_like(sizes).scatter(1, order, sizes)
        before = (in_order.cumsum(dim=1) - in_order).gather(1, order)  # patches in the clusters that come first
        wanted = max(size, math.ceil(self.settings.retrieve * patches))
        taken = (before < wanted) & (order < size)  # no more clusters than tokens: each keeps one
        retrieved = taken.gather(1, labels)
        ranks = ranks_of(relevance(similarity, weights))
        heads = best_of_cluster(labels, ranks)
        return top_mask(-(ranks + patches * (~heads).long() + 2 * patches * (~retrieved).long()), size), retrieved
