"""SparseVLM: a few words of the question rate the visual tokens, layer by layer; 1.0 merges part of what goes.

SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, Zhang et al., ICML 2025 (arXiv
2410.04417; code Gumpest/SparseVLMs 26a5f48). As in the authors' code: the raters are the tokens after the image that the
image resembles more than it does the mean one, by the language model's input embeddings, and are chosen once; a token's score
is the attention it receives from them in the layer before, averaged over heads. 2.0 (SparseVLM+) divides that attention
by what rotary positions alone would make of it, averages over the heads of largest attention, and keeps positions. 1.0
takes all heads, clusters the better 30% of what goes by density peaks, puts the clusters' means behind the tokens that
stay, and counts positions anew. Counts for 576 tokens are those of the release's "192", whose layers 2, 6 and 15 rank: the
first to see fewer are 3, 7 and 16, as `layers` counts. The first release (91fb6d9) is 1.0 with a fourth stage, and the
rank of the raters' attention, scaled, is its count. Departures: other numbers of tokens and depths take the same shares; where densities are equal the lower index counts as denser, in place of the release's noise; any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.methods.base import DecoderShape, DecoderTokens
from llava_prumerge.methods.contract import Merged
from llava_prumerge.methods.cost import UNKNOWN, Course
from llava_prumerge.methods.pruners import CountSettings, ScheduledPruner
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import at_least, setting
from llava_prumerge.ops.clusters import density_peaks, nearest_peaks
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout, rows_of
from llava_prumerge.ops.select import pack, select
from llava_prumerge.ops.token_schedule import Curve, TokenSchedule, at_depths, geometric, nearest_up, raised

LAYERS, FOURTH, PATCHES = (3, 7, 16), 20, 576
"""Of 32 layers, the first that see fewer tokens; visual tokens of an image that the counts are of."""
COUNTS = {"2.0": (300, 200, 118), "1.0": (300, 200, 110)}
RECYCLED, CLUSTER = 0.3, 10
"""Of 1.0: the share of the deleted tokens that are merged, and how many make a cluster."""
HEADS, OF_HEADS = 14, 32
SCALE, BIAS = 13.5, 0.0
"""Of the first release's "192": tokens that stay for one of the rank, and beside them."""


@dataclass(frozen=True, kw_only=True)
class SparseVLMSettings(CountSettings):
    """A budget counts merged tokens too. Counts are of tokens that stay themselves."""

    version: Literal["2.0", "1.0", "first"] = setting(
        "2.0",
        "2.0 corrects attention for rotary positions and merges nothing; 1.0 recycles; first too, and a rank is its count",
        source="released code",
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "the first layers on fewer tokens, ranked by the layers before; null: 3, 7, 16 of 32 (and 20 in the first version), "
        "or the same fractions",
        source="released code",
    )
    heads: int | None = setting(
        None,
        "2.0: the mean is over so many heads, those of largest attention; null: 14, or the same share of fewer than 32",
        at_least(1),
        source="released code",
    )
    scale: float | None = setting(
        None, "first: tokens that stay for one of the rank; null: 13.5", at_least(0), source="released code"
    )
    bias: float | None = setting(None, "first: and so many beside them; null: 0", source="released code")

    def check(self) -> None:
        super().check()
        first = self.version == "first"
        for key in ("counts", "budget") if first else ("scale", "bias"):
            if getattr(self, key) is not None:
                of = "the rank of the attention decides how many stay" if first else "it is of version first"
                raise ReductionError(f"{key} is of no use in version {self.version}: {of}")
        if self.layers is not None and min(self.layers, default=1) < 1:
            raise ReductionError(f"layers {list(self.layers)} must be 1 or later: the layer before ranks")
        if self.heads is not None and self.version != "2.0":
            raise ReductionError(f"heads={self.heads} is of version 2.0; {self.version} takes the mean over all")


class Stage(NamedTuple):
    """What one drop leaves of a sequence: tokens that stay, how many of the others are merged, and into how many."""

    kept: int
    pool: int = 0
    clusters: int = 0

    @property
    def total(self) -> int:
        """Visual tokens after it."""
        return self.kept + self.clusters


def recycled(before: int, kept: int) -> Stage:
    """1.0's: of the deleted int(0.3 x their number) + 1 are merged into int(a tenth of these) + 1."""
    deleted = before - kept
    pool = min(deleted, int(RECYCLED * deleted) + 1)
    return Stage(kept, pool, int(pool / CLUSTER) + 1 if pool else 0)


class SparseSchedule(TokenSchedule):
    """Counts of the release, or a budget's; with recycling totals include merged tokens.

    Args:
        recycles: part of what goes is merged.
        shares: of a sequence's tokens that stay at each drop, where there are neither counts nor a budget.
        *rest: see `TokenSchedule`.
    """

    def __init__(self, *rest: Any, recycles: bool, shares: Sequence[float]) -> None:
        self.recycles, self.shares = recycles, shares
        super().__init__(*rest)

    def stages(self, present: int, images: int) -> tuple[Stage, ...]:
        """Each drop of a sequence that begins with so many tokens. As released at least one goes each time."""
        totals = None if self.budget is None else self.plan(present, images)
        found: list[Stage] = []
        for at in range(len(self.drops)):
            before = found[-1].total if found else present
            if totals is not None:
                found.append(self._leaving(before, totals[at]))
                continue
            wanted = nearest_up(present * self.shares[at]) if self.fixed is None else images * self.fixed[at]
            kept = max(min(wanted, before - 1), min(before, 1))
            found.append(recycled(before, kept) if self.recycles else Stage(kept))
        return tuple(found)

    def _leaving(self, before: int, total: int) -> Stage:
        """The drop that leaves so many in all."""
        if not self.recycles or total >= before:
            return Stage(total)
        drops = (recycled(before, kept) for kept in range(total, -1, -1))
        return next((stage for stage in drops if stage.total <= total), Stage(0, recycled(before, 0).pool, total))

    def _own(self, present: int, images: int) -> tuple[int, ...]:
        return tuple(stage.total for stage in self.stages(present, images))

    def current(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of each sequence of the pass the drop before a layer: kept, merged and merged into [B]; after `counts`."""
        at = self.drops.index(layer)
        stages = torch.tensor([self.stages(*begun)[at] if begun[0] else Stage(0) for begun in self.begun])
        kept, pool, clusters = stages.to(device).unbind(dim=1)
        return kept, pool, clusters


@register("sparsevlm")
class SparseVLM(ScheduledPruner):
    """Keep the visual tokens to which the words that the image resembles attend most, layer after layer."""

    paper = "SparseVLM, Zhang et al., ICML 2025 (arXiv 2410.04417)"
    ranks = True
    settings: SparseVLMSettings
    schedule: SparseSchedule

    def __init__(self, settings: SparseVLMSettings, shape: DecoderShape) -> None:
        first = settings.version == "first"
        published = (*LAYERS, FOURTH) if first else LAYERS
        released = [1.0] * len(published) if first else [count / PATCHES for count in COUNTS[settings.version]]
        if settings.layers is None:  # of stages that fall together in a shallow decoder the last one counts
            stages = dict(zip(at_depths(published, shape.layers), released, strict=True))
            layers, shares = tuple(stages), tuple(stages.values())
        else:
            layers, shares = settings.layers, tuple(released)
        if len(shares) == len(layers):
            curve: Curve = partial(raised, rates=shares)
        elif settings.counts is None and settings.budget is None and not first:
            raise ReductionError(f"{self.name}: layers {list(layers)} need counts, as many, or a budget")
        else:
            curve = partial(geometric, drops=len(layers))
        recycles = settings.version != "2.0"
        schedule = partial(SparseSchedule, recycles=recycles, shares=shares)
        super().__init__(settings, shape, layers, curve, 0.5, fixed=settings.counts, schedule=schedule)
        self.layers = (0, *self.layers)  # at the first it chooses the raters
        self.positions = "renumbered" if recycles else "original"
        self.heads = settings.heads or (
            HEADS if shape.heads >= OF_HEADS else max(1, round(HEADS * shape.heads / OF_HEADS))
        )
        self._raters: Tensor | None = None

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | Merged | None:
        """Before layer 0 the raters are chosen; before others tokens go. -> [B, L] bool, or `Merged` where some merge"""
        if layer == 0:
            self._raters = raters(tokens)
            return None
        if self.settings.version == "2.0":
            return super().forward(layer, tokens)
        with torch.no_grad():
            if self.settings.version == "first":
                scores, (kept, pool, clusters) = self._by_rank(layer, tokens)
            else:
                counts = self.schedule.counts(layer, tokens.layout, always=self.training)
                if counts is None:
                    return None
                scores = self.scores(layer, tokens, counts)
                kept, pool, clusters = self.schedule.current(layer, counts.device)
            keep = self.schedule.best(tokens.layout, scores, kept)
            gone, real = pack(tokens.layout.is_image & ~keep, scores, max(1, int(pool.amax())))
            real = real & (torch.arange(gone.shape[1], device=gone.device) < pool[:, None])
        return merged(tokens, keep, gone, real, clusters)

    def scores(self, layer: int, tokens: DecoderTokens, counts: Tensor) -> Tensor:
        """Attention received from the raters, see the file. -> [B, L]"""
        attention, rows, weights = self._asked(layer, tokens)
        share = (weights / weights.sum(dim=1, keepdim=True))[..., None]  # [B, R, 1]
        if self.settings.version != "2.0":
            return (attention.mean(dim=1) * share).sum(dim=1)
        near = tokens.nearness(layer - 1, rows)
        counted = torch.where(tokens.layout.is_image[:, None] & (share != 0), share / near, 0.0)  # [B, R, L]
        received = (attention * counted[:, None]).sum(dim=2)  # [B, H, L]
        best = received.sum(dim=2).argsort(dim=1, descending=True, stable=True)[:, : self.heads]
        return select(received, best).mean(dim=1)

    def _asked(self, layer: int, tokens: DecoderTokens) -> tuple[Tensor, Tensor, Tensor]:
        """The raters' attention in the layer before [B, H, R, L], their places, and 0 for those that are none [B, R]."""
        text, ordinal = texts(tokens.layout)
        if self._raters is None or self._raters.shape[0] != len(text):
            raise ReductionError(f"{self.name}: asked about layer {layer} before layer 0 of the same batch")
        rows, weights = rows_of(text & self._raters.to(text.device).gather(1, ordinal))
        return tokens.attention(layer - 1, rows), rows, weights

    def _by_rank(self, layer: int, tokens: DecoderTokens) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The first release's scores [B, L], and how many stay, are merged and into how many [B]. One host synchronisation.

        int(rank * scale + bias) stay, the rank that of the raters' attention to the visual tokens, averaged over heads. As
        released all stay where the rank is their number, and at least one goes elsewhere.
        """
        attention, _, weights = self._asked(layer, tokens)
        visual = tokens.layout.is_image
        block = attention.float().mean(dim=1) * weights[..., None] * visual[:, None]  # [B, R, L]
        present, asking = visual.sum(dim=1), weights.sum(dim=1)
        smallest = torch.maximum(present, asking) * torch.finfo(block.dtype).eps  # of a matrix without what is padding
        ranks = torch.linalg.matrix_rank(block, rtol=smallest)
        scale = SCALE if self.settings.scale is None else self.settings.scale
        bias = BIAS if self.settings.bias is None else self.settings.bias
        stages = []
        for before, rank in torch.stack([present, ranks], dim=1).tolist():
            kept = max(min(int(rank * scale + bias), before - 1), min(before, 1))
            stages.append(Stage(before) if rank == before else recycled(before, kept))
        return block.sum(dim=1) / asking[:, None], torch.tensor(stages, device=visual.device).unbind(dim=1)

    def course(self, present: int) -> Course:
        """The schedule's; not known ahead where a rank decides."""
        if self.settings.version == "first":
            return Course((present,) * self.depth, UNKNOWN, exact=False)
        return super().course(present)


def texts(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Which tokens are text, and the number of each among them, by which it is known after any drop. [B, L] twice"""
    text = layout.key_mask & ~layout.is_image
    return text, (text.cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def raters(tokens: DecoderTokens) -> Tensor:
    """The text tokens that rate, by their number among the text. [B, L] bool

    Those of the questions for which the image's tokens choose more often than for the mean one: a softmax over the text of the
    plain products of embeddings, averaged over the image's tokens. Where none is above the mean, all are.
    """
    layout, hidden = tokens.layout, tokens.hidden.float()
    rows, weights = layout.question_rows()
    products = hidden @ select(hidden, rows).transpose(1, 2)  # [B, L, R]
    chosen = products.masked_fill(weights[:, None] == 0, -torch.inf).softmax(dim=2) * layout.is_image[..., None]
    weight = chosen.sum(dim=1) / layout.is_image.sum(dim=1, keepdim=True).clamp(min=1)  # [B, R]
    mean = weight.sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    above = (weight > mean) & (weights > 0)
    above = torch.where(above.any(dim=1, keepdim=True), above, weights > 0)
    marked = torch.zeros_like(layout.is_image).scatter_(1, rows, above)
    _, ordinal = texts(layout)
    return torch.zeros_like(marked, dtype=torch.uint8).scatter_reduce(1, ordinal, marked.to(torch.uint8), "amax").bool()


def merged(tokens: DecoderTokens, keep: Tensor, gone: Tensor, real: Tensor, clusters: Tensor) -> Merged:
    """What stays, and the means of clusters of what goes, put behind a sequence's last visual token.

    Args:
        tokens: of the layer.
        keep: [B, L] bool.
        gone: [B, M] places of the tokens that are merged, best first; as many of these give their places to means.
        real: [B, M] bool, which of them there are.
        clusters: [B] how many means.
    """
    points, layout = select(tokens.hidden, gone).float(), tokens.layout
    distances = torch.cdist(points.detach(), points.detach()) / points.shape[2] ** 0.5  # [B, M, M]
    fitness = density_peaks(distances, real, clusters)
    number = torch.arange(max(1, int(clusters.amax())), device=gone.device)
    centres = fitness.argsort(dim=1, descending=True, stable=True)[:, : len(number)]  # [B, K]
    valid = number < clusters[:, None]
    members = nearest_peaks(distances, real, centres, valid)  # [B, K, M]
    means = (members @ points) / (members.sum(dim=2, keepdim=True) + 1e-6)
    length = keep.shape[1]
    places = gone[:, : len(number)].masked_fill(~valid, length)  # what is none goes to a place that is cut off
    spread = places[..., None].expand_as(means)
    hidden = F.pad(tokens.hidden, (0, 0, 0, 1)).scatter(1, spread, means.to(tokens.hidden.dtype))[:, :-1]
    stands = F.pad(torch.zeros_like(keep), (0, 1)).scatter(1, places, True)[:, :-1]
    index = torch.arange(length, device=keep.device).expand_as(keep)
    last = torch.where(layout.is_image, index, 0).amax(dim=1, keepdim=True)
    behind = last * length + 1 + number  # between the last visual token and what follows it
    order = F.pad(index * length, (0, 1)).scatter(1, places, behind.expand_as(places))[:, :-1]
    return Merged(keep | stands, hidden, stands, order)
