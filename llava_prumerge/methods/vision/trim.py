"""TRIM: the patches that CLIP finds to be about the question stay, and one token is the mean of all others.

Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs, Song et al., COLING 2025
(arXiv 2409.10994). The rule is the authors' code (FreedomIntelligence/TRIM f5a232d): a softmax over patches of the
negated product of patch and question in CLIP's joint space, neither normalised; as many patches stay as are outliers
of it by Tukey's fence, or a share; then the mean of the others. Departures: the fence is each image's, where the
release takes the whole batch's; where everything stays there is no mean. LLaVA's checkpoints bring no text side of
their tower, which `clip` names; without it `space: auto` compares projected patches with the prompt's embeddings by
cosine, which is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit, TokensLeft
from llava_prumerge.methods.reducers import CountingReducer, MatchSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import fraction, setting
from llava_prumerge.ops.retrieval import against_clip, centred, mean_match, prompt_similarity, queries_of
from llava_prumerge.ops.select import leftover_weights, mix, outlier_count, pick, top_mask


@dataclass(frozen=True, kw_only=True)
class TrimSettings(MatchSettings):
    """By default each image decides, as with the release's TRIM:-1."""

    ratio: Fraction | None = setting(
        None,
        "share of the patches that stays beside the mean, rounded down; null: as many as there are outliers",
        fraction(zero=True),
        source="released code",
    )
    iqr_factor: float = setting(1.5, "Tukey's factor of the outlier rule that counts", source="released code")
    space: Literal["llm", "clip", "auto"] = setting(
        "auto",
        "where patches and prompt are compared: clip as released, llm (projected tokens and prompt embeddings), or "
        "auto: clip where the tower has its text side, else llm",
        source="released code; llm is ours",
    )


@register("trim")
class Trim(CountingReducer):
    """Keep the patches that concern the question in raster order, then the mean of the others."""

    reads_prompt = reads_projected = True
    paper = "TRIM, Song et al., COLING 2025 (arXiv 2409.10994)"
    call_limit = CallLimit(80, why="it reads the prompt, for which a batch is unpacked, and makes a token of what goes")
    settings: TrimSettings

    def tokens_left(self, patches: int) -> TokensLeft:
        """The budget, or the share and the mean; else each image decides."""
        if self.budget is not None or self.settings.ratio is None:
            return super().tokens_left(patches)
        return TokensLeft(min(int(patches * self.settings.ratio) + 1, patches), "its ratio")

    def scores(self, image: VisionTokens) -> Tensor:
        """How much each patch concerns the question. [N, P]"""
        space = image.space(self.settings.space)
        given = image.matched(space)
        if space == "clip":  # a text that is too long is cut off
            return against_clip(given[0], given[1][:, :1], given[2][:, :1], unit=False).softmax(dim=1)
        queries = queries_of(given[2], self.settings.before, self.settings.after)
        return mean_match(prompt_similarity(*centred(*given, self.settings.centre)), queries)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, C]; the origin of the mean is -1."""
        patches = image.features.shape[1]
        with torch.no_grad():
            scores = self.scores(image)
        if self.budget is not None:
            chosen = torch.full_like(scores[:, 0], self.budget - 1 if self.budget < patches else patches)
        elif self.settings.ratio is not None:
            chosen = torch.full_like(scores[:, 0], int(patches * self.settings.ratio))
        else:
            chosen = outlier_count(scores, self.settings.iqr_factor)
        whole = chosen == patches
        size = self.width(image, chosen + ~whole, scores)
        keep = top_mask(scores, chosen)
        mean = mix(leftover_weights(torch.ones_like(scores), ~keep, normalise=True), image.features)
        keep = torch.cat([keep, ~whole[:, None]], dim=1)
        features, valid, origin = pick(torch.cat([image.features, mean], dim=1), keep, size)
        return features, valid, origin.masked_fill(origin == patches, -1)
