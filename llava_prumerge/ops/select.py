"""What stays of tokens: attention to scores, scores to masks, masks to ordered indices, and features picked or merged by them.

No loop over images or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout, rows_of

MERGES = ("sum", "neighbours", "average")


def prompt_attention(
    attention: Callable[[int, Tensor], Tensor], layout: TokenLayout, layer: int, rows: str = "last"
) -> Tensor:
    """Attention that each token receives from the prompt, the mean over heads.

    Args:
        attention: layer, rows [B, R] -> [B, H, R, L].
        layout: of the sequences.
        layer: which one is asked.
        rows: "last", the prompt's last token, in training the mean over the last of every turn's; "text", the mean over all
            its text tokens that see an image.

    Returns:
        [B, L].
    """
    if rows == "last" and layout.shift_labels is None:
        return attention(layer, layout.last_index()[:, None]).mean(dim=1)[:, 0]
    asked, weights = rows_of(layout.turn_ends()) if rows == "last" else layout.question_rows()
    received = attention(layer, asked).mean(dim=1)  # [B, R, L]
    return (weights[:, None] @ received)[:, 0] / weights.sum(dim=1, keepdim=True)


def received_attention(queries: Tensor, keys: Tensor, heads: int = 1) -> Tensor:
    """Attention that each key receives, averaged over the query rows and the heads, in float32.

    Args:
        queries: [N, R, C] query projections of the rows that look (one row: the class token).
        keys: [N, S, C] key projections of all tokens.
        heads: heads the width is split into. 1 treats the whole width as one head, as the released PruMerge does.

    Returns:
        [N, S]; each image's row sums to 1.
    """
    images, rows, width = queries.shape
    if width % heads:
        raise ReductionError(f"width {width} does not split into {heads} heads")
    queries = queries.float().view(images, rows, heads, width // heads).transpose(1, 2)  # [N, H, R, C/H]
    keys = keys.float().view(images, -1, heads, width // heads).transpose(1, 2)  # [N, H, S, C/H]
    logits = queries @ keys.transpose(2, 3) * (width // heads) ** -0.5  # [N, H, R, S]
    rows_of_heads = logits.softmax(dim=-1)
    return rows_of_heads[:, 0, 0] if heads == rows == 1 else rows_of_heads.mean(dim=(1, 2))


@dataclass
class BlockProjections:
    """Query and key projections of one block of a vision tower, and their attention, computed when first asked for.

    Attributes:
        queries: [N, R, C] of the rows that look.
        keys: [N, S, C] of all tokens, the patches last.
        heads: attention heads of the block.
        patches: P.
        frames: T of a video whose frames are reduced together: queries and keys are then of each frame, [N x T, ...], and its
            P patches those of all frames. A frame's class token looks at that frame alone, so each frame receives as much.
        attention: what was computed so far, by number of heads.
    """

    queries: Tensor
    keys: Tensor
    heads: int
    patches: int
    frames: int = 1
    attention: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def _of_patches(self, each: Tensor) -> Tensor:
        """What there is of all tokens of each frame, of the patches alone. [N x T, S, ...] -> [N, P, ...]"""
        each = each[:, -(self.patches // self.frames) :]
        return each if self.frames == 1 else each.unflatten(0, (-1, self.frames)).flatten(1, 2)

    @property
    def patch_keys(self) -> Tensor:
        """[N, P, C]"""
        return self._of_patches(self.keys)

    @property
    def mean_keys(self) -> Tensor:
        """Keys of all tokens averaged over heads, float32: the metric of ToMe and VisionZip. [N, S, C/H]"""
        return self.keys.float().unflatten(2, (self.heads, -1)).mean(dim=2)

    @property
    def head_keys(self) -> Tensor:
        """`mean_keys` of the patches alone. [N, P, C/H]"""
        return self.patch_keys.float().unflatten(2, (self.heads, -1)).mean(dim=2)

    def received(self, heads: int) -> Tensor:
        """Attention each patch receives, as if the block had that many heads. [N, P]"""
        if heads not in self.attention:
            self.attention[heads] = self._of_patches(received_attention(self.queries, self.keys, heads))
        return self.attention[heads]


def outlier_mask(scores: Tensor, factor: float = 1.5) -> Tensor:
    """Upper outliers of each row by Tukey's fence: scores above Q3 + factor * (Q3 - Q1). [N, P] -> [N, P] bool

    Quartiles are interpolated linearly, as `numpy.percentile` does. Written out because `Tensor.quantile` checks its argument on the host.
    """
    scores = scores.float()
    ordered = scores.sort(dim=1).values
    first, third = _interpolated(ordered, 0.25), _interpolated(ordered, 0.75)
    fence = third + factor * (third - first)
    return scores > fence[:, None]


def outlier_count(scores: Tensor, factor: float = 1.5) -> Tensor:
    """Number of outliers of each row, see `outlier_mask`. [N, P] -> [N]"""
    return outlier_mask(scores, factor).sum(dim=1)


def _interpolated(ordered: Tensor, share: float) -> Tensor:
    """The value below which `share` of a sorted row lies. [N, P] -> [N]"""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)], place - below)


def ranks_of(scores: Tensor) -> Tensor:
    """Each entry's place in its row, 0 for the highest score; ties go to the lower index. [..., P] -> [..., P] int64"""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def top_mask(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Mark each row's `counts` highest scores; ties go to the lower index. [N, P], [N] -> [N, P] bool"""
    if isinstance(counts, int):
        first = scores.argsort(dim=-1, descending=True, stable=True)[..., :counts]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, first, True)
    return ranks_of(scores) < counts[:, None]


def even_mask(candidates: Tensor, counts: Tensor | int) -> Tensor:
    """Mark `counts` of each row's candidates, evenly spaced in their order and always reaching the last one.

    Args:
        candidates: [N, P] bool.
        counts: [N] or a number; capped at the number of candidates.

    Returns:
        [N, P] bool with exactly min(counts, candidates) marks per row.
    """
    after = candidates.cumsum(dim=1)  # [N, P], rank among the candidates from 1
    total = after[:, -1:]
    wanted = total.clamp(max=counts) if isinstance(counts, int) else torch.minimum(counts[:, None], total)
    made = F.pad(after * wanted // total.clamp(min=1), (1, 0))  # [N, P + 1], marks made before each
    return made[:, 1:] > made[:, :-1]


def stride_mask(strides: Tensor, stop: int, size: int) -> Tensor:
    """Mark every `strides[n]`-th index below `stop`, from 0. [N] -> [N, size] bool"""
    index = torch.arange(stop, device=strides.device)
    return F.pad(index % strides[:, None] == 0, (0, size - stop))


def pack(keep: Tensor, priority: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices of the kept tokens in falling priority, ragged rows padded at the end.

    Args:
        keep: [N, P] bool.
        priority: [N, P]; ties go to the lower index.
        size: K, at least the largest number kept in a row.

    Returns:
        index [N, K] (padding repeats some dropped token) and valid [N, K] bool.
    """
    order = priority.float().masked_fill(~keep, -torch.inf).argsort(dim=1, descending=True, stable=True)
    index = order[:, :size]
    return index, keep.gather(1, index)


def raster_priority(keep: Tensor, first: int = 0) -> Tensor:
    """A priority for `pack` that gives raster order, falling by 1 from that of the first patch. [N, P]"""
    last = first - keep.shape[1]
    return torch.arange(first, last, -1, device=keep.device, dtype=torch.float32).expand(keep.shape)


def spread_index(counts: Tensor, size: int, patches: int) -> tuple[Tensor, Tensor]:
    """Indices in the middle of `counts` equal runs of the raster, ragged rows padded at the end.

    Args:
        counts: [N], at most patches.
        size: K, at least the largest count.
        patches: P.

    Returns:
        index [N, K] and valid [N, K] bool.
    """
    number = torch.arange(size, device=counts.device)
    counts = counts[:, None]
    index = (2 * number + 1) * patches // (2 * counts.clamp(min=1))
    return index.clamp(max=patches - 1), number < counts


def nearest_weights(
    keys: Tensor, weights: Tensor, centres: Tensor, neighbours: int, merge: str, pool: Tensor | None = None
) -> Tensor:
    """Mixing matrix that adds to each centre its most similar other tokens.

    Similarity is the cosine of the keys; neighbours count whether they are kept or dropped themselves, and always with their
    original features.

    Args:
        keys: [N, P, C].
        weights: [N, P], the weight of each token as a neighbour (class attention).
        centres: [N, K] raster indices.
        neighbours: how many each centre takes; capped at the number of others.
        merge: "sum" adds weights[j] * x[j] (released PruMerge), "neighbours" divides these weights by their sum (the line commented
            out in the release), "average" is the weighted mean over the centre and its neighbours.
        pool: [N, M] indices the neighbours are drawn from, beginning with the centres in their order (a token may occur twice); by
            default every token once.

    Returns:
        [N, K, P], to be multiplied with the features.
    """
    if merge not in MERGES:
        raise InputError(f"merge {merge!r} is not one of {', '.join(MERGES)}")
    patches = keys.shape[1]
    unit = F.normalize(keys.float(), dim=-1)
    picked = unit.gather(1, centres[..., None].expand(-1, -1, unit.shape[-1]))  # [N, K, C]
    similarity = picked @ unit.transpose(1, 2)  # [N, K, P]
    if pool is not None:
        similarity = similarity.gather(2, pool[:, None].expand(-1, centres.shape[1], -1))  # [N, K, M]
        itself = torch.arange(centres.shape[1], device=keys.device).expand_as(centres)
    else:
        itself = centres
    similarity = similarity.scatter(2, itself[..., None], -torch.inf)
    near = similarity.topk(min(neighbours, similarity.shape[2] - 1), dim=2).indices  # [N, K, k]
    if pool is not None:
        near = pool[:, None].expand(-1, centres.shape[1], -1).gather(2, near)
    share = weights.float()[:, None].expand(-1, centres.shape[1], -1).gather(2, near)  # [N, K, k]
    own: Tensor | float = 1.0
    if merge == "neighbours":
        share = share / share.sum(dim=2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    elif merge == "average":
        own = weights.float().gather(1, centres)[..., None]
        total = (share.sum(dim=2, keepdim=True) + own).clamp(min=torch.finfo(torch.float32).tiny)
        share, own = share / total, own / total
    mixing = keys.new_zeros(*centres.shape, patches, dtype=torch.float32)
    return mixing.scatter_(2, centres[..., None], own).scatter_add_(2, near, share)


def leftover_weights(weights: Tensor, dropped: Tensor, normalise: bool) -> Tensor:
    """Mixing row of the one token that stands for all dropped ones. [N, P], [N, P] bool -> [N, 1, P]"""
    row = weights.float() * dropped
    if normalise:
        row = row / row.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return row[:, None]


def mix(mixing: Tensor, features: Tensor) -> Tensor:
    """Apply a mixing matrix in float32 and return the features' dtype. [N, K, P], [N, P, C] -> [N, K, C]"""
    return (mixing @ features.float()).to(features.dtype)


def select(features: Tensor, index: Tensor) -> Tensor:
    """Pick tokens unchanged. [N, P, C], [N, K] -> [N, K, C]"""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))


def pick(features: Tensor, keep: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The marked tokens unchanged, in raster order, as a reducer gives them back.

    Args:
        features: [N, P, C].
        keep: [N, P] bool.
        size: K, at least the largest number marked in a row.

    Returns:
        features [N, K, C], valid [N, K] bool, origin [N, K] with -1 where not valid.
    """
    index, valid = pack(keep, raster_priority(keep), size)
    return select(features, index), valid, index.masked_fill(~valid, -1)


def behind_token(token: Tensor, kept: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Put a token that stands for no patch before what a reducer gives back. [N, 1, C], (features, valid, origin)"""
    features, valid, origin = kept
    ahead = torch.ones_like(valid[:, :1]), torch.full_like(origin[:, :1], -1)
    return (
        torch.cat([token, features], dim=1),
        torch.cat([ahead[0], valid], dim=1),
        torch.cat([ahead[1], origin], dim=1),
    )


def nearest_centres(
    points: Tensor, centres: Tensor, members: Tensor, valid: Tensor | None = None, clusters: Tensor | None = None
) -> Tensor:
    """Which members each centre gathers: every member goes to the centre of highest cosine, ties to the first.

    Args:
        points: [N, P, C], what similarity is measured on.
        centres: [N, K] raster indices.
        members: [N, P] bool, the tokens to be given away; no centre among them.
        valid: [N, K] bool, which centres are real; all of them by default.
        clusters: [N, P] numbers; a member goes to a centre of its own number only. By default to any.

    Returns:
        [N, K, P] float32, a single one in a member's column where it has a centre, zeros everywhere else.
    """
    unit = F.normalize(points.float(), dim=-1)
    similarity = select(unit, centres) @ unit.transpose(1, 2)  # [N, K, P]
    open_to = members[:, None].expand_as(similarity)
    if valid is not None:
        open_to = open_to & valid[..., None]
    if clusters is not None:
        open_to = open_to & (clusters.gather(1, centres)[..., None] == clusters[:, None])
    best = similarity.masked_fill(~open_to, -torch.inf).argmax(dim=1, keepdim=True)  # [N, 1, P]
    return torch.zeros_like(similarity).scatter_(1, best, 1.0) * open_to


def group_weights(gathered: Tensor, centres: Tensor, add: bool = False) -> Tensor:
    """Mixing matrix that folds what a centre gathered into it.

    Args:
        gathered: [N, K, P] of zeros and ones, a centre itself not among what it gathers.
        centres: [N, K] raster indices.
        add: the centre plus the mean of what it gathered, instead of the mean of all of them.

    Returns:
        [N, K, P]; a centre that gathered nothing stays as it is.
    """
    total = gathered.sum(dim=2, keepdim=True)
    own = torch.zeros_like(gathered).scatter_(2, centres[..., None], 1.0)
    return own + gathered / total.clamp(min=1) if add else (own + gathered) / (total + 1)
