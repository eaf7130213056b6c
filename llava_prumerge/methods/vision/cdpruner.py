"""CDPruner: a greedy choice by a determinantal point process, whose kernel prefers patches that the question is about.

Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs, Zhang et al., NeurIPS
2025 (arXiv 2506.10967). The rule is the authors' code (Theia-4869/CDPruner 9541616): kernel r_i S_ij r_j of cosines S
of projected patches and relevance r, which is the negated cosine of a patch and the question in CLIP's joint space,
scaled to [0, 1] over the image; tokens are chosen one after the other by the greedy MAP rule and leave in raster
order. Departures: relevance is scaled over each image, where the release scales it over the batch; where the kernel's
rank is used up the rest is chosen by what the diagonal has left, where the release returns fewer. LLaVA's checkpoints
bring no text side of their tower, which `clip` names; without it `space: auto` compares projected patches with the
prompt's embeddings, which is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import PromptSettings, ShareReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import setting
from llava_prumerge.ops.greedy import cosines, determinant_first, marked
from llava_prumerge.ops.retrieval import against_clip, centred, mean_match, prompt_similarity, queries_of
from llava_prumerge.ops.select import pick

SMALL = 1e-6


@dataclass(frozen=True, kw_only=True)
class CDPrunerSettings(PromptSettings):
    """By default 64 of 576 tokens."""

    space: Literal["llm", "clip", "auto"] = setting(
        "auto",
        "where relevance is measured: clip as released, llm (projected tokens and prompt embeddings), or auto: clip "
        "where the tower has its text side, else llm",
        source="released code; llm is ours",
    )


@register("cdpruner")
class CDPruner(ShareReducer):
    """Keep patches that differ from each other and concern the question, in raster order."""

    site, reads_prompt = "projected", True
    paper = "CDPruner, Zhang et al., NeurIPS 2025 (arXiv 2506.10967)"
    call_limit = CallLimit(70, step=17, why="it reads the prompt, and its greedy rule has one step for each kept token")
    greedy = True
    settings: CDPrunerSettings

    def relevance(self, image: VisionTokens) -> Tensor:
        """Of each patch to the question. [N, P]"""
        space = image.space(self.settings.space)
        given = image.matched(space)
        if space == "clip":
            return against_clip(*given, unit=True)
        queries = queries_of(given[2], self.settings.before, self.settings.after)
        return mean_match(prompt_similarity(*centred(*given, self.settings.centre)), queries)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D] unchanged."""
        with torch.no_grad():
            relevance = self.relevance(image)
            size = self.width(image, self.counts(image), relevance)
            least, most = (end[:, None] for end in relevance.aminmax(dim=1))
            relevance = (relevance - least + SMALL) / (most - least).clamp(min=SMALL)
            kernel = relevance[..., None] * cosines(image.features) * relevance[:, None]
            order = determinant_first(kernel, size)
        return pick(image.features, marked(order, image.features.shape[1]), size)
