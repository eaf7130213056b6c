"""ATP-LLaVA: trained modules between decoder layers set thresholds, per image and layer, that decide which tokens stay.

ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models, Ye et al., CVPR 2025 (arXiv 2412.00447). No code was
published and the paper's body could not be read: this is our reading of its equations as a re-implementation and
reading notes quote them.

A token stays if its redundancy score passes one threshold or its spatial score another (hard OR at inference; soft
masks on attention keys in training). The redundancy score is the mean of attention among visual tokens (Eq. 3, logits)
and attention from the text (Eq. 4, softmax); the spatial score (Eq. 5) is 1 - R * lambda_sample for the sparsest of
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
- N counts what inference would keep, with the gradient of the soft sum (`count`).
- Gradients reach the thresholds, and not the language model by way of the scores (`through_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, ReductionError, register
from llava_prumerge.ops.token_schedule import at_depth

PLACES = (4 / 32, 14 / 32, 24 / 32)
"""The paper's layers 4, 14 and 24 of 32."""
CHOICES = {
    "scale": ("minmax", "none"),
    "axis": ("received", "given"),
    "average": ("layers", "modules"),
    "count": ("soft", "straight_through"),
}


class Thresholds(nn.Module):
    """Two thresholds in (0, 1) from the scores of a sequence's visual tokens (Eq. 6-8).

    Args:
        patches: P.
        width: of the shared linear map.
        start: what both thresholds are about before training.
    """

    def __init__(self, patches: int, width: int, start: float) -> None:
        super().__init__()
        self.start = math.log(
            start / (1 - start)
        )  # no parameter: linear layers start wherever their model starts them, around 0
        self.shared = nn.Linear(2 * patches, width)
        self.redundant = nn.Linear(width, 1)
        self.spatial = nn.Linear(width, 1)

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2P] -> thresholds of the redundancy and of the spatial score, [B, 1] each."""
        mapped = self.shared(scores.to(self.shared.weight.dtype))
        return tuple((head(mapped).float() + self.start).sigmoid() for head in (self.redundant, self.spatial))


@register("atp_llava")
class AtpLlava(DecoderPruner):
    """Keep the tokens that pass learned thresholds, other ones for each image and layer.

    Args:
        shape: of the language model; P must be the square of a whole number.
        target: N_target, visual tokens per image averaged over the decoder's layers that training steers to: a number,
            or a share of P written as a fraction (paper: 144/576, and 88 of 576). Steered to, so not met exactly; must
            not be less than the layers before the first module cost.
        layers: the modules stand before these; None takes the paper's 4, 14, 24 of 32 at the same fractions of the
            depth.
        temperature: T of the soft masks (10 and 100 are reported).
        lambda_sample: of the spatial score (reported: 3.0).
        strides: of the nested samplings, each a multiple of the one before; stride s has rate 1 / s^2.
        outside: spatial score of tokens that no sampling has (0 and -100 are reported).
        width: of the shared linear map.
        start: thresholds before training.
        scale: "minmax" brings both scores to [0, 1] over the visual tokens there are, "none" leaves them as they are.
        axis: the self score is the attention a token "received" from visual tokens or has "given" to them.
        lambda_atp: weight of sum over modules of N / P times their layer's number (0.05 and 0.01 are reported).
        lambda_target: weight of |mean N - N_target| (reported: 0.2).
        average: the mean of N is taken over all "layers" of the decoder or over the "modules".
        count: N adds up "soft" masks (the equation's letter), or "straight_through" counts what inference would keep
            and takes the soft sum's gradient: steered by soft sums, inference keeps another number than the target.
        through_scores: gradients also reach the language model by way of the scores.
    """

    def __init__(
        self,
        shape: DecoderShape,
        target: float | str = "144/576",
        layers: Sequence[int] | None = None,
        temperature: float = 10.0,
        lambda_sample: float = 3.0,
        strides: Sequence[int] = (2, 4, 8),
        outside: float = 0.0,
        width: int = 64,
        start: float = 0.5,
        scale: str = "minmax",
        axis: str = "received",
        lambda_atp: float = 0.05,
        lambda_target: float = 0.2,
        average: str = "layers",
        count: str = "straight_through",
        through_scores: bool = False,
    ) -> None:
        if layers is None:
            layers = [at_depth(place, shape.layers) for place in PLACES]
        super().__init__(shape, tuple(set(layers)))
        for key, value in {"scale": scale, "axis": axis, "average": average, "count": count}.items():
            if value not in CHOICES[key]:
                raise ReductionError(f"{self.name}: {key} {value!r} is not one of {', '.join(CHOICES[key])}")
        if self.layers[0] < 1:
            raise ReductionError(f"{self.name}: layer 0 has no layer before it to score by; take 1 or more")
        self.side = math.isqrt(shape.patches)
        if self.side**2 != shape.patches:
            raise ReductionError(f"{self.name}: {shape.patches} visual tokens are no square grid")
        if not temperature > 0 or not 0 < start < 1 or width < 1:
            raise ReductionError(
                f"{self.name}: temperature {temperature} and width {width} must be above 0, "
                f"start {start} between 0 and 1"
            )
        steps = [1, *strides]
        if any(later % step or later == step for step, later in zip(steps, strides)):
            raise ReductionError(
                f"{self.name}: strides {list(strides)} must be rising multiples of each other, 2 or more"
            )
        self.target = self._tokens(target, shape.patches)
        least = self.layers[0] * shape.patches / shape.layers if average == "layers" else 0
        if self.target < least and not shape.reduced:
            raise ReductionError(
                f"{self.name}: target {target!r} is out of reach: the {self.layers[0]} layers before the first module "
                f"alone cost {least:g} visual tokens averaged over {shape.layers} layers; take a larger target, "
                "earlier layers or average=modules"
            )
        self.depth, self.patches, self.strides = shape.layers, shape.patches, tuple(strides)
        self.temperature, self.lambda_sample, self.outside = float(temperature), float(lambda_sample), float(outside)
        self.scale, self.axis, self.average, self.count = scale, axis, average, count
        self.lambda_atp, self.lambda_target, self.through_scores = lambda_atp, lambda_target, through_scores
        self.modules_before = nn.ModuleDict({str(at): Thresholds(shape.patches, width, start) for at in self.layers})
        self._passed: Tensor | None = None  # [B, L] product of the soft masks so far
        self._stays: Tensor | None = None  # [B, L] bool, what inference would still have
        self._counts: dict[int, Tensor] = {}  # layer -> N per image, averaged over the batch
        self._begun: Tensor | None = None

    def _tokens(self, target: float | str, patches: int) -> float:
        """N_target in tokens."""
        try:
            tokens = float(Fraction(target)) * patches if isinstance(target, str) else float(target)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ReductionError(
                f"{self.name}: target {target!r} is neither a number nor a fraction such as 144/576"
            ) from error
        if not 0 < tokens <= patches:
            raise ReductionError(f"{self.name}: target {target!r} is not within 0 to {patches} tokens")
        return tokens

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor:
        """-> [B, L]: float gates in training, bool otherwise."""
        layout = tokens.layout
        if layer == self.layers[0]:
            self._begin(tokens)
        present = layout.is_image if self._stays is None else self._stays
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.through_scores):
            own, cross = (self._scaled(score, present) for score in self._scores(layer, tokens))
        redundancy, spatial = (own + cross) / 2, self.spatial_scores(layout.origin)
        lowest, sparsest = self.modules_before[str(layer)](self._by_place(layout.origin, own, cross))  # [B, 1] each
        passes = (redundancy > lowest) | (spatial > sparsest)
        if not self.training:
            return ~layout.is_image | passes
        soft = torch.maximum(
            ((redundancy - lowest) * self.temperature).sigmoid(), ((spatial - sparsest) * self.temperature).sigmoid()
        )
        gate = torch.where(layout.is_image, soft, 1.0)
        self._passed, self._stays = self._passed * gate, self._stays & passes
        self._counts[layer] = self._counted(layout.is_image)
        return gate

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
        if self.axis == "received":
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
        if self.scale == "minmax":
            low = scores.masked_fill(~present, torch.inf).amin(dim=1, keepdim=True)
            high = scores.masked_fill(~present, -torch.inf).amax(dim=1, keepdim=True)
            span = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
            scores = ((scores - low) / span).clamp(0, 1)
        return torch.where(present, scores, 0.0)

    def spatial_scores(self, origin: Tensor) -> Tensor:
        """Eq. 5: of the sparsest sampling that has the patch. [B, L] raster indices -> [B, L]"""
        place = torch.arange(self.patches, device=origin.device)
        row, column = place // self.side, place % self.side
        scores = torch.full((self.patches + 1,), self.outside, device=origin.device)  # the last for no patch
        for stride in self.strides:
            sampled = (row % stride == 0) & (column % stride == 0)
            scores[:-1].masked_fill_(sampled, 1 - self.lambda_sample / stride**2)
        return scores[origin]

    def _by_place(self, origin: Tensor, *scores: Tensor) -> Tensor:
        """Scores side by side in raster order, the mean where several tokens have one place. [B, L] each -> [B, 2P]"""
        place = origin.clamp(min=0)
        real = (origin >= 0).float()
        blank = real.new_zeros(len(origin), self.patches)
        number = blank.scatter_add(1, place, real).clamp(min=1)
        return torch.cat([blank.scatter_add(1, place, score * real) / number for score in scores], dim=1)

    def _counted(self, is_image: Tensor) -> Tensor:
        """N: visual tokens per image that are left, averaged over the batch."""
        soft = (self._passed * is_image).sum() / self._images
        if self.count == "soft":
            return soft
        return soft + (self._stays.sum() / self._images - soft).detach()

    def mean_count(self) -> Tensor | None:
        """Visual tokens per image of the last training batch, averaged as `average` says."""
        if len(self._counts) < len(self.layers) or self._begun is None:
            return None
        counts = [self._counts[layer] for layer in self.layers]
        if self.average == "modules":
            return sum(counts) / len(counts)
        runs = [end - start for start, end in zip(self.layers, [*self.layers[1:], self.depth], strict=True)]
        later = sum(run * count for run, count in zip(runs, counts, strict=True))
        return (self.layers[0] * self._begun + later) / self.depth

    def loss(self) -> Tensor | None:
        """lambda_atp * L_atp + lambda_target * L_target (Eq. 12-14) of the last training batch; 0 without images."""
        mean = self.mean_count()
        if mean is None:
            return None
        deep = sum(count / self.patches * layer for layer, count in self._counts.items())
        return self._seen * (self.lambda_atp * deep + self.lambda_target * (mean - self.target).abs())

    def extra_repr(self) -> str:
        return f"layers={list(self.layers)}, target={self.target:g}, temperature={self.temperature}"
