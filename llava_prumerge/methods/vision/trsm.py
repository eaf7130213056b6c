"""TRSM: every prompt token retrieves the visual tokens most similar to it, and the rest is merged into those.

Retrieval Replace Reduction: An effective visual token reduction method via semantic match, Liu et al. (arXiv 2410.07278
v1; `par` is v2 of the same paper). Only the abstract could be read, and the authors published no code. From it comes:
the prompt as query, retrieval of the most similar visual tokens, compression "by 20%". All else is our reading: cosine
between prompt embeddings and projected visual tokens in the language model's space, both mean-centred; lists of all
prompt tokens that grow at the same pace until their union is as large as wanted; every other token averaged into its
nearest kept one. The abstract merges what was retrieved "with the text tokens"; here it stays at the image's place. "By
20%" can mean to 20% (`keep_ratio: 0.2`, the default) or down by
20% (`keep_ratio: 0.8`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit, TokensLeft
from llava_prumerge.methods.reducers import PromptSettings, ShareReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.retrieval import centred, prompt_similarity, queries_of, union_order
from llava_prumerge.ops.select import group_weights, mix, nearest_centres, pick


@dataclass(frozen=True, kw_only=True)
class TRSMSettings(PromptSettings):
    """All fields are our reading. With `centre: both` a prompt of one token says nothing: the first patches stay."""

    keep_ratio: Fraction = setting(
        0.2,
        "share of the patches that stays at most, and exactly where retrieve is not given",
        fraction(),
        source='abstract, "by 20%"',
        formerly="keep",
    )
    retrieve: int | None = setting(
        None,
        "patches that each prompt token retrieves; null: as many as fill keep_ratio. A budget that asks for more goes on "
        "in the same order",
        at_least(1),
        source="our reading",
    )
    merge: Literal["mean", "none"] = setting(
        "mean", "mean averages what is dropped into its nearest kept token, none drops it", source="our reading"
    )


@register("trsm")
class TRSM(ShareReducer):
    """Keep the union of what the prompt tokens retrieve, in raster order; training-free."""

    site, reads_prompt = "projected", True
    paper = "TRSM, Liu et al. (arXiv 2410.07278 v1), our reading of the abstract"
    call_limit = CallLimit(90, why="it reads the prompt, for which a batch is unpacked")
    settings: TRSMSettings

    def tokens_left(self, patches: int) -> TokensLeft:
        """The share, which is the most where `retrieve` limits the lists."""
        left = super().tokens_left(patches)
        if self.settings.retrieve is None or self.budget is not None:
            return left
        return TokensLeft(left.tokens, f"{left.source}, at most", exact=False)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D]."""
        counts = self.counts(image)
        given = image.matched(self.settings.space)
        with torch.no_grad():
            visual, text = centred(*given, self.settings.centre)
            queries = queries_of(given[2], self.settings.before, self.settings.after)
            depth, place = union_order(prompt_similarity(visual, text), queries)  # [N, P]
            if self.settings.retrieve is not None and self.budget is None:
                counts = torch.minimum(counts, (depth < self.settings.retrieve).sum(dim=1)).clamp(min=1)
            keep = place < counts[:, None]
        size = self.width(image, counts, *given[:2])
        features, valid, origin = pick(image.features, keep, size)
        if self.settings.merge == "mean":
            index = origin.clamp(min=0)
            with torch.no_grad():
                mixing = group_weights(nearest_centres(visual, index, ~keep, valid), index)
            features = mix(mixing, image.features)
        return features, valid, origin
