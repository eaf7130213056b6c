"""MMTok: greedy coverage of the question's tokens and of the image's own patches together.

MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs, Dong et al., ICLR 2026 (arXiv 2508.18264).
The rule is the authors' code (Ironieser/MMTok d1522cd): one row for each prompt token and one for each patch, a
softmax over all patches of cosines over a temperature (prompt embeddings with projected patches, patches with patches
before the projector); the patch that raises the best cover of the rows most comes next. Kept patches leave in raster
order. Departures: the words are those behind the image without stop words and role names, as far as the model's
tokenizer is known (`load_model` tells it), else all prompt tokens but those that `before` and `after` leave out; the
release reads the user's turn itself; patches of LLaVA's padding are told by their colour, which the release computes
from the image's size, and are chosen where no other is left, where the release chooses its first patch again and
again; scores are float32 for each image of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import WordReducer, WordSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import above, at_least, setting
from llava_prumerge.ops.greedy import cosines, coverage_first, marked
from llava_prumerge.ops.select import pick


@dataclass(frozen=True, kw_only=True)
class MMTokSettings(WordSettings):
    """By default 64 of 576 tokens."""

    alpha: float = setting(
        0.5, "weight of the image's rows beside those of the prompt", at_least(0), source="released code"
    )
    text_temperature: float = setting(
        0.02, "of prompt and patches; the release's Qwen port has 0.01", above(0), source="released code"
    )
    image_temperature: float = setting(0.2, "of patches and patches", above(0), source="released code")
    padding: Literal["leave", "take"] = setting(
        "leave",
        "leave takes patches that show LLaVA's padding alone only where no other is left, take treats them as any",
        source="released code",
    )


@register("mmtok")
class MMTok(WordReducer):
    """Keep the patches that cover question and image best, in raster order."""

    paper = "MMTok, Dong et al., ICLR 2026 (arXiv 2508.18264)"
    call_limit = CallLimit(70, step=8, why="it reads the prompt, and its greedy rule has one step for each kept token")
    greedy = True
    settings: MMTokSettings

    def covers(self, image: VisionTokens) -> Tensor:
        """How well each patch covers each row. [N, T + P, P]"""
        projected, text, queries = self.asked(image)
        asked = (cosines(text, projected) / self.settings.text_temperature).softmax(dim=2)
        asked = (asked / queries.sum(dim=1).clamp(min=1)[:, None, None]).masked_fill(~queries[..., None], 0.0)
        own = (cosines(image.before_projector) / self.settings.image_temperature).softmax(dim=2)
        return torch.cat([asked, self.settings.alpha / own.shape[1] * own], dim=1)

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D] unchanged."""
        with torch.no_grad():
            covers = self.covers(image)
            size = self.width(image, self.counts(image), covers)
            padding = image.padding if self.settings.padding == "leave" else None
            order = coverage_first(covers, size, last=None if padding is None else padding())
        return pick(image.features, marked(order, image.features.shape[1]), size)
