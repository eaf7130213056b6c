"""TRSM: every prompt token retrieves the visual tokens most similar to it, and the rest is merged into those.

Retrieval Replace Reduction: An effective visual token reduction method via semantic match, Liu et al. (arXiv 2410.07278
v1; `par` is v2 of the same paper). Only the abstract could be read, and the authors published no code. From it comes:
the prompt as query, retrieval of the most similar visual tokens, compression "by 20%". All else is our reading: cosine
between prompt embeddings and projected visual tokens in the language model's space, both mean-centred; lists of all
prompt tokens that grow at the same pace until their union is as large as wanted; every other token averaged into its
nearest kept one. The abstract merges what was retrieved "with the text tokens"; here it stays at the image's place. "By
20%" can mean to 20% (`keep: 0.2`, the default) or down by 20% (`keep: 0.8`).
"""

from __future__ import annotations

from typing import Any

import torch

from llava_prumerge.methods.base import SPACES, Reduced, ShareReducer, VisionTokens, is_whole, register
from llava_prumerge.ops.merge import group_weights, mix, nearest_centres, pick
from llava_prumerge.ops.retrieval import CENTRES, centred, prompt_similarity, queries_of, union_order

MERGES = ("mean", "none")


@register("trsm")
class TRSM(ShareReducer):
    """Keep the union of what the prompt tokens retrieve, in raster order. All fields are our reading; training-free.

    Args:
        keep: share of the patches that stays at most, and exactly where `retrieve` is not given.
        retrieve: patches that each prompt token retrieves; None: as many as fill `keep`. The order of the union goes on
            beyond it where a budget asks for more.
        space: "llm" (projected tokens and prompt embeddings) or "clip" (where the tower comes with its text side).
        centre: means subtracted before the cosine: "both", "visual", "none" (see `ops.retrieval.centred`). With "both"
            a prompt of a single token says nothing, and the first tokens of the raster stay.
        before, after: prompt tokens of the conversation's template, at its beginning and end, that retrieve nothing.
        merge: "mean" averages what is dropped into its nearest kept token, "none" drops it.
        Others: see `ShareReducer`.
    """

    site, reads_prompt = "projected", True

    def __init__(
        self,
        keep: float | str = 0.2,
        retrieve: int | None = None,
        space: str = "llm",
        centre: str = "both",
        before: int = 0,
        after: int = 0,
        merge: str = "mean",
        **settings: Any,
    ) -> None:
        super().__init__(keep=keep, **settings)
        self.check(retrieve is None or is_whole(retrieve, 1), "retrieve", retrieve, "a positive whole number")
        self.check(space in SPACES, "space", space, f"one of {', '.join(SPACES)}")
        self.check(centre in CENTRES, "centre", centre, f"one of {', '.join(CENTRES)}")
        self.check(is_whole(before, 0), "before", before, "a whole number of at least 0")
        self.check(is_whole(after, 0), "after", after, "a whole number of at least 0")
        self.check(merge in MERGES, "merge", merge, f"one of {', '.join(MERGES)}")
        self.retrieve, self.space, self.centre, self.merge = retrieve, space, centre, merge
        self.before, self.after = before, after

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D]."""
        counts = self.counts(image)
        given = image.matched(self.space)
        with torch.no_grad():
            visual, text = centred(*given, self.centre)
            queries = queries_of(given[2], self.before, self.after)
            depth, place = union_order(prompt_similarity(visual, text), queries)  # [N, P]
            if self.retrieve is not None and self.budget is None:
                counts = torch.minimum(counts, (depth < self.retrieve).sum(dim=1)).clamp(min=1)
            keep = place < counts[:, None]
        size = self.width(image, counts, *given[:2])
        features, valid, origin = pick(image.features, keep, size)
        if self.merge == "mean":
            index = origin.clamp(min=0)
            with torch.no_grad():
                mixing = group_weights(nearest_centres(visual, index, ~keep, valid), index)
            features = mix(mixing, image.features)
        return features, valid, origin
