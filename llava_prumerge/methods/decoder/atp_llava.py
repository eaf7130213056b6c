"""ATP-LLaVA: trained modules between decoder layers set thresholds, per image and layer, that decide which tokens stay.

ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models, Ye et al., CVPR 2025 (arXiv 2412.00447). No code was
published and the paper's body could not be read: this is our reading of its equations as a re-implementation and
reading notes quote them.

A token stays if its redundancy score passes one threshold or its spatial score another (hard OR at inference; masks on
attention keys in training). The redundancy score is the mean of attention among visual tokens (Eq. 3, logits; which way
round is a field) and attention from the text (Eq. 4, softmax); the spatial score (Eq. 5) is 1 - R * lambda_sample for the sparsest of
nested samplings of the grid, of rate R, that has the token. Thresholds come from two sigmoid heads on one linear map of
both scores (Eq. 6-8), masks from sigmoids of temperature T (Eq. 9-11), the losses are Eq. 12-14.

Ours, where the sources are silent or disagree (each with a field that changes it where one is named):
- Both scores are brought to [0, 1] over a sequence's visual tokens (`scale`), where the thresholds live: raw attention
  logits do not stay there.
- The self score is attention received (`axis`), averaged over heads and over all visual tokens, logits that the causal
  mask hides among them. Text rows are those of the question that can see the image.
- The linear map reads both scores by the token's place in the grid, 0 where it is gone, so that it does not matter how
  many are left.
- Nested samplings take every 2nd, 4th and 8th row and column (`strides`); tokens of none get 0 (`outside`).
- Masks of successive modules multiply, as dropping does. N is counted per image and averaged over the batch before
  |N - N_target|, so that images may differ; the mean over layers is that over all decoder layers, as the paper counts
  its tokens (`average`).
- N counts what inference would keep, with the gradient of the soft sum (`count`), and training sees what inference would,
  with the gradient of the soft masks of what stays (`gate`): soft masks alone leave in sight what inference drops.
- What visual tokens look at most is redundant and has a low self score (`received`): copies have it the other way round.
- Gradients reach the thresholds, and not the language model by way of the scores (`through_scores`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.cost import Course
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import Rule, Settings, above, at_least, between, setting
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import LEAST_WEIGHT
from llava_prumerge.ops.token_schedule import at_depth

PLACES = (4 / 32, 14 / 32, 24 / 32)
"""The paper's layers 4, 14 and 24 of 32."""


def is_target(value: float | str) -> bool:
    """Whether something is a number, or a share of P written as a fraction."""
    try:
        return Fraction(value) > 0
    except (ValueError, OverflowError, ZeroDivisionError):
        return False


@dataclass(frozen=True, kw_only=True)
class AtpLlavaSettings(Settings):
    """A field for each number or rule on which sources differ or are silent."""

    target: float | str = setting(
        "144/576",
        "N_target, visual tokens per image averaged over the decoder's layers that training steers to, so that it is not "
        "met exactly: a number, or a share of P written as a fraction; not less than the layers before the first module "
        "cost",
        Rule("a number or a fraction such as 144/576, above 0", is_target),
        source="paper, which also has 88/576",
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "the modules stand before these; null: 4, 14, 24 of 32 at the same fractions of the depth",
        source="paper",
    )
    temperature: float = setting(10.0, "T of the soft masks", above(0), source="reported, as is 100")
    lambda_sample: float = setting(3.0, "of the spatial score", source="reported")
    strides: tuple[int, ...] = setting(
        (2, 4, 8),
        "of the nested samplings, each a multiple of the one before; stride s has rate 1 / s^2",
        source="ours",
    )
    outside: float = setting(0.0, "spatial score of tokens that no sampling has", source="reported, as is -100")
    width: int = setting(64, "of the shared linear map", at_least(1), source="ours")
    start: float = setting(0.5, "thresholds before training", between(0, 1), source="ours")
    start_later: float | None = setting(
        None, "those of the redundancy score behind the first module; null: start", between(0, 1), source="ours"
    )
    start_spatial: float | None = setting(None, "those of the spatial score; null: start", between(0, 1), source="ours")
    scale: Literal["minmax", "none"] = setting(
        "minmax",
        "minmax brings both scores to [0, 1] over the visual tokens there are, none leaves them as they are",
        source="ours",
    )
    axis: Literal["received", "given"] = setting(
        "received",
        "the self score is the attention a token received from visual tokens, or has given to them",
        source="ours",
    )
    received: Literal["redundant", "important"] = setting(
        "redundant",
        "what visual tokens look at most is like them and goes (1 - the self score), or stays",
        source="ours, copies have important",
    )
    lambda_atp: float = setting(
        0.05, "weight of the sum over modules of N / P times their layer's number", source="reported, as is 0.01"
    )
    lambda_target: float = setting(0.2, "weight of |mean N - N_target|", source="reported")
    average: Literal["layers", "modules"] = setting(
        "layers", "the mean of N is taken over all layers of the decoder, or over the modules", source="paper"
    )
    count: Literal["soft", "straight_through"] = setting(
        "straight_through",
        "soft: N adds up soft masks (the equation's letter), which steers inference to another number; straight_through: "
        "N counts what inference would keep and takes the soft sum's gradient",
        source="ours",
    )
    gate: Literal["soft", "straight_through"] = setting(
        "straight_through",
        "soft: training sees tokens that inference drops, at the weight of their masks (the equation's letter); "
        "straight_through: it sees what inference would, and what stays has its soft mask's gradient",
        source="ours",
    )
    through_scores: bool = setting(False, "gradients also reach the language model by way of the scores", source="ours")

    def check(self) -> None:
        steps = [1, *self.strides]
        if any(later % step or later == step for step, later in zip(steps, self.strides)):
            raise ReductionError(f"strides {list(self.strides)} must be rising multiples of each other, 2 or more")


class Thresholds(nn.Module):
    """Two thresholds in (0, 1) from the scores of a sequence's visual tokens (Eq. 6-8).

    Args:
        patches: P.
        width: of the shared linear map.
        start: what the thresholds of the redundancy and of the spatial score are about before training.
    """

    def __init__(self, patches: int, width: int, start: tuple[float, float]) -> None:
        super().__init__()
        # No parameters: linear layers start wherever their model starts them, around 0.
        self.start = tuple(math.log(value / (1 - value)) for value in start)
        self.shared = nn.Linear(2 * patches, width)
        self.redundant = nn.Linear(width, 1)
        self.spatial = nn.Linear(width, 1)

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2P] -> thresholds of the redundancy and of the spatial score, [B, 1] each."""
        mapped = self.shared(scores.to(self.shared.weight.dtype))
        heads = zip((self.redundant, self.spatial), self.start, strict=True)
        return tuple((head(mapped).float() + start).sigmoid() for head, start in heads)


@register("atp_llava")
class AtpLlava(DecoderPruner):
    """Keep the tokens that pass learned thresholds, other ones for each image and layer."""

    paper = "ATP-LLaVA, Ye et al., CVPR 2025 (arXiv 2412.00447), our reading"
    ranks = gates_in_training = True
    settings: AtpLlavaSettings

    def __init__(self, settings: AtpLlavaSettings, shape: DecoderShape) -> None:
        layers = settings.layers
        super().__init__(
            settings, shape, [at_depth(place, shape.layers) for place in PLACES] if layers is None else layers
        )
        if self.layers[0] < 1:
            raise ReductionError(f"{self.name}: layer 0 has no layer before it to score by; take 1 or more")
        if shape.patches is None:
            raise ReductionError(
                f"{self.name}: its modules need one number of visual tokens for all images, and this model has none"
            )
        self.side = math.isqrt(shape.patches)
        if self.side**2 != shape.patches:
            raise ReductionError(f"{self.name}: {shape.patches} visual tokens are no square grid")
        self.patches, self.target = shape.patches, self._tokens(settings.target, shape.patches)
        least = self.layers[0] * shape.patches / shape.layers if settings.average == "layers" else 0
        if self.target < least and not shape.reduced:
            raise ReductionError(
                f"{self.name}: target {settings.target!r} is out of reach: the {self.layers[0]} layers before the first "
                f"module alone cost {least:g} visual tokens averaged over {shape.layers} layers; take a larger target, "
                "earlier layers or average=modules"
            )
        later, spatial = (
            settings.start if value is None else value for value in (settings.start_later, settings.start_spatial)
        )
        starts = [(settings.start, spatial), *[(later, spatial)] * (len(self.layers) - 1)]
        self.modules_before = nn.ModuleDict(
            {
                str(at): Thresholds(shape.patches, settings.width, start)
                for at, start in zip(self.layers, starts, strict=True)
            }
        )
        self._passed: Tensor | None = None  # [B, L] product of the soft masks so far
        self._stays: Tensor | None = None  # [B, L] bool, what inference would still have
        self._counts: dict[int, Tensor] = {}  # layer -> N per image, averaged over the batch
        self._begun: Tensor | None = None

    def _tokens(self, target: float | str, patches: int) -> float:
        """N_target in tokens."""
        tokens = float(Fraction(target)) * patches if isinstance(target, str) else target
        if not 0 < tokens <= patches:
            raise ReductionError(f"{self.name}: target {target!r} is not within 0 to {patches} tokens")
        return tokens

    def course(self, present: int) -> Course:
        """All tokens up to the first module, then as many in each layer as meet the target."""
        first, after = self.layers[0], self.target
        if self.settings.average == "layers":
            after = (self.target * self.depth - first * present) / (self.depth - first)
        after = min(max(after, 0.0), present)
        visual = (float(present),) * first + (after,) * (self.depth - first)
        return Course(visual, "its target, which training steers to", exact=False)

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor:
        """-> [B, L]: float gates in training, bool otherwise."""
        layout = tokens.layout
        if layer == self.layers[0]:
            self._begin(tokens)
        present = layout.is_image if self._stays is None else self._stays
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings.through_scores):
            own, cross = self._scores(layer, tokens)
            own = self._scaled(-own if self.settings.received == "redundant" else own, present)
            cross = self._scaled(cross, present)
        redundancy, spatial = (own + cross) / 2, self.spatial_scores(layout.origin)
        lowest, sparsest = self.modules_before[str(layer)](self._by_place(layout.origin, own, cross))  # [B, 1] each
        passes = (redundancy > lowest) | (spatial > sparsest)
        if not self.training:
            return ~layout.is_image | passes
        soft = torch.maximum(
            ((redundancy - lowest) * self.settings.temperature).sigmoid(),
            ((spatial - sparsest) * self.settings.temperature).sigmoid(),
        )
        if self._passed is None or self._stays is None:
            raise ReductionError(f"{self.name}: training was switched on between two layers of one pass")
        gate = self._gate(layout.is_image, soft, passes)
        self._passed, self._stays = self._passed * gate, self._stays & passes
        self._counts[layer] = self._counted(layout.is_image, self._passed, self._stays)
        return gate

    def _gate(self, is_image: Tensor, soft: Tensor, passes: Tensor) -> Tensor:
        """What keys are weighed by, given the visual tokens' soft masks and which of them pass. [B, L] each -> [B, L]

        A closed gate has no gradient: that of a weight of next to nothing is out of all proportion (1,900 in norm in the pocket
        world). What stays says whether it was worth its place.
        """
        if self.settings.gate == "soft":
            return torch.where(is_image, soft, 1.0)
        present = is_image if self._stays is None else self._stays
        opened = torch.where(passes, 1.0 + (soft - soft.detach()), LEAST_WEIGHT)
        return torch.where(present, opened, 1.0)  # what an earlier module has closed stays closed by its gate

    def _begin(self, tokens: DecoderTokens) -> None:
        """Forget the forward before."""
        layout = tokens.layout
        self._counts, self._begun = {}, None
        self._passed = self._stays = None
        if not self.training:
            return
        images = layout.is_image.any(dim=1).sum() if layout.images is None else layout.images.sum()
        self._images = images.clamp(min=1)
        self._seen = (images > 0).float()
        self._passed, self._stays = torch.ones_like(layout.is_image, dtype=torch.float32), layout.is_image
        self._begun = layout.is_image.sum() / self._images

    def _scores(self, layer: int, tokens: DecoderTokens) -> tuple[Tensor, Tensor]:
        """Self-modality (Eq. 3) and cross-modality (Eq. 4) score of each place by the layer before. [B, L] each

        A mean of logits is the logit of a mean: no matrix of tokens by tokens is formed.
        """
        layout, before = tokens.layout, layer - 1
        weight = layout.is_image.float() if self._passed is None else (layout.is_image * self._passed).detach()
        keys = tokens.keys(before)  # [B, H, L, D/H]
        if self.settings.axis == "received":
            asking, asked = tokens.mean_query(before, weight).to(keys.dtype), keys
        else:
            share = (weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)).to(keys.dtype)
            asking, asked = share[:, None, None] @ keys, tokens.queries(before)
        logits = (asked @ asking.transpose(2, 3))[..., 0].float()  # [B, H, L]
        own = logits.mean(dim=1) / math.sqrt(keys.shape[-1])
        rows, real = layout.question_rows()
        attention = tokens.attention(before, rows).mean(dim=1)  # [B, R, L]
        return own, (real[:, None] @ attention)[:, 0] / real.sum(dim=1, keepdim=True)

    def _scaled(self, scores: Tensor, present: Tensor) -> Tensor:
        """Scores brought to [0, 1] over the visual tokens that are present; 0 elsewhere. [B, L], [B, L] -> [B, L]

        Raises:
            ReductionError: a score is not finite.
        """
        if not self.training and not bool((scores.isfinite() | ~present).all()):
            raise ReductionError(f"{self.name}: the scores of the visual tokens hold NaN or infinity")
        if self.settings.scale == "minmax":
            low = scores.masked_fill(~present, torch.inf).amin(dim=1, keepdim=True)
            high = scores.masked_fill(~present, -torch.inf).amax(dim=1, keepdim=True)
            span = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
            scores = ((scores - low) / span).clamp(0, 1)
        return torch.where(present, scores, 0.0)

    def spatial_scores(self, origin: Tensor) -> Tensor:
        """Eq. 5: of the sparsest sampling that has the patch. [B, L] raster indices -> [B, L]"""
        place = torch.arange(self.patches, device=origin.device)
        row, column = place // self.side, place % self.side
        scores = torch.full((self.patches + 1,), self.settings.outside, device=origin.device)  # the last for no patch
        for stride in self.settings.strides:
            sampled = (row % stride == 0) & (column % stride == 0)
            scores[:-1].masked_fill_(sampled, 1 - self.settings.lambda_sample / stride**2)
        return scores[origin]

    def _by_place(self, origin: Tensor, *scores: Tensor) -> Tensor:
        """Scores side by side in raster order, the mean where several tokens have one place. [B, L] each -> [B, 2P]"""
        place = origin.clamp(min=0)
        real = (origin >= 0).float()
        blank = real.new_zeros(len(origin), self.patches)
        number = blank.scatter_add(1, place, real).clamp(min=1)
        return torch.cat([blank.scatter_add(1, place, score * real) / number for score in scores], dim=1)

    def _counted(self, is_image: Tensor, passed: Tensor, stays: Tensor) -> Tensor:
        """N: visual tokens per image that are left, averaged over the batch."""
        soft = (passed * is_image).sum() / self._images
        if self.settings.count == "soft":
            return soft
        return soft + (stays.sum() / self._images - soft).detach()

    def mean_count(self) -> Tensor | None:
        """Visual tokens per image of the last training batch, averaged as `average` says."""
        if len(self._counts) < len(self.layers) or self._begun is None:
            return None
        counts = [self._counts[layer] for layer in self.layers]
        if self.settings.average == "modules":
            return torch.stack(counts).sum() / len(counts)
        runs = [end - start for start, end in zip(self.layers, [*self.layers[1:], self.depth], strict=True)]
        later = sum(run * count for run, count in zip(runs, counts, strict=True))
        return (self.layers[0] * self._begun + later) / self.depth

    def loss(self) -> Tensor | None:
        """lambda_atp * L_atp + lambda_target * L_target (Eq. 12-14) of the last training batch; 0 without images."""
        mean = self.mean_count()
        if mean is None:
            return None
        deep = sum(count / self.patches * layer for layer, count in self._counts.items())
        return self._seen * (self.settings.lambda_atp * deep + self.settings.lambda_target * (mean - self.target).abs())
