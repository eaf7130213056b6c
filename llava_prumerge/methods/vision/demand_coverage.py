"""Demand coverage: the kept patches cover the others as well as these are in demand, by attention and by question. Ours.

A patch u is in demand for two reasons: the class token attends to it, and it is like a word of the question. With class
attention a (mean over heads), words t and their weights w (sum 1: the more, the more a word tells patches apart),

    s_u = a_u^p / sum a^p,    r_u = sum_t w_t softmax_u(cos(t, y_u) / question_temperature),    d = (1 - q) s + q r,

and the kept set S is a greedy maximum of the sum over u of d_u max over v in S of exp((cos(h_u, h_v) - 1) / temperature),
where h are the features before the projector less their mean over the image, y those behind it, and u runs over the
`rows` patches of highest demand. Kept patches leave unchanged in raster order. The sum is monotone and submodular, so that the greedy choice has at least 63%
of the best one's (Nemhauser et al. 1978). What is new beside its relatives: SCOPE multiplies the gain of the patch that
is chosen by its attention, so that background near an object is worth as much as the object is; MMTok covers each word
by one patch and adds the image's own rows with equal weight; DivPrune covers whatever is different. See docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_prumerge.methods.base import Reduced, VisionTokens
from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.reducers import WordReducer, WordSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import above, at_least, fraction, setting
from llava_prumerge.ops.greedy import cosines, coverage_first, marked
from llava_prumerge.ops.retrieval import contrast_weights
from llava_prumerge.ops.select import pick, select


@dataclass(frozen=True, kw_only=True)
class DemandCoverageSettings(WordSettings):
    """By default 64 of 576 tokens."""

    question: float = setting(
        0.5,
        "q: share of the demand that the question's words make; 0 reads no prompt",
        fraction(zero=True),
        source="ours",
    )
    power: float = setting(
        0.5,
        "p: power of the class attention in the rest of the demand; 0: all patches alike",
        at_least(0),
        source="ours",
    )
    temperature: float = setting(
        0.1, "how unlike a patch may be that another covers: less than this, 1 - cosine", above(0), source="ours"
    )
    question_temperature: float = setting(0.05, "of cosines of words and patches", above(0), source="ours")
    rows: int = setting(
        192,
        "patches that are to be covered: so many in highest demand, which bounds the cost",
        at_least(1),
        source="ours",
    )
    centre: bool = setting(True, "subtract the image's mean feature before patches are compared", source="ours")


@register("demand_coverage")
class DemandCoverage(WordReducer):
    """Keep the patches that cover best what is attended to and asked about, in raster order."""

    call_limit = CallLimit(80, step=8, why="it reads the prompt, and its greedy rule has one step for each kept token")
    greedy = True
    settings: DemandCoverageSettings

    def attention(self, image: VisionTokens) -> Tensor:
        """Of the block that made the features, the mean over heads. [N, P]"""
        return image.attention(per_head=True, own=True)

    def demand(self, image: VisionTokens) -> Tensor:
        """How much each patch is in demand; sums to 1, or to 1 - q where no word tells patches apart. [N, P]"""
        salient = self.attention(image).pow(self.settings.power)
        salient = salient / salient.sum(dim=1, keepdim=True)
        if self.settings.question == 0:
            return salient
        projected, text, queries = self.asked(image)
        likeness = cosines(text, projected)  # [N, T, P]
        weights = contrast_weights(likeness, queries)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        found = (likeness / self.settings.question_temperature).softmax(dim=2)
        return torch.lerp(salient, (weights[:, None] @ found)[:, 0], self.settings.question)

    def covers(self, image: VisionTokens) -> Tensor:
        """How well each patch (last) covers those in highest demand, times that. [N, R, P]"""
        features = image.before_projector.float()
        if self.settings.centre:
            features = features - features.mean(dim=1, keepdim=True)
        demand = self.demand(image)
        rows = min(self.settings.rows, demand.shape[1])
        wanted = demand.argsort(dim=1, descending=True, stable=True).narrow(1, 0, rows)  # [N, R]
        likeness = cosines(select(features, wanted), features)
        return ((likeness - 1) / self.settings.temperature).exp() * demand.gather(1, wanted)[..., None]

    def forward(self, image: VisionTokens) -> Reduced:
        """-> features [N, K, D] unchanged."""
        with torch.no_grad():
            covers = self.covers(image)
            size = self.width(image, self.counts(image), covers)
            order = coverage_first(covers, size)
        return pick(image.features, marked(order, image.features.shape[1]), size)
