"""The two contracts: a `VisionReducer` acts between tower and projector, a `DecoderPruner` before chosen decoder layers.

A method only says what to keep. It never touches masks, positions, labels or caches, and does not know which model it runs in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from llava_prumerge.methods.contract import Merged, check_pruned, check_reduced
from llava_prumerge.methods.cost import UNKNOWN, Benchmark, CallLimit, Course, Expected, TokensLeft
from llava_prumerge.methods.decoder_tokens import DecoderShape as DecoderShape
from llava_prumerge.methods.decoder_tokens import DecoderTokens as DecoderTokens
from llava_prumerge.methods.image_tokens import Earlier as Earlier
from llava_prumerge.methods.image_tokens import LanguageShape, TowerBlock
from llava_prumerge.methods.image_tokens import VisionTokens as VisionTokens
from llava_prumerge.methods.restoring import Reduced as Reduced
from llava_prumerge.methods.restoring import with_anchors
from llava_prumerge.methods.search_target import SearchTarget
from llava_prumerge.methods.settings import Rule, Settings, above, at_least, setting
from llava_prumerge.ops.errors import ReductionError as ReductionError  # for whoever writes a method
from llava_prumerge.ops.layout import Calibration, TokenLayout


@dataclass(frozen=True, kw_only=True)
class ReducerSettings(Settings):
    """What all vision reducers take that reduce at all."""

    budget: int | None = setting(
        None, "tokens every image leaves with, exactly (at most all); null: the method's own rule", at_least(1)
    )
    positions: Literal["contiguous", "original"] = setting(
        "contiguous",
        "rotary positions: contiguous numbers what is kept as LLaVA does, original leaves each token that of its patch",
        source="released code",
    )
    anchors: Fraction = setting(
        Fraction(0),
        "share of the budget for anchors, into which what goes is merged; the method itself chooses the rest. RESTORE: 1/2",
        Rule("a number in [0, 1) or a fraction such as 1/2", lambda value: 0 <= value < 1),
        source="RESTORE (off)",
    )
    proportional: bool = setting(
        False,
        "a token that stands for s patches is attended to as s equal ones would be: log s is added to its logits",
        source="RESTORE (off)",
    )
    calibration: float | None = setting(
        None,
        "c: log(c - D) is added to logits of visual tokens, D what the distance makes of rotary likeness; null: nothing. "
        "RESTORE: 2",
        above(1),
        source="RESTORE (off)",
    )
    calibrated: Literal["visual", "all"] = setting(
        "visual", "keys that calibration is for: visual ones, or those of text too", source="our reading"
    )


class Method(nn.Module):
    """What both contracts share: a name, a paper and settings.

    Attributes:
        name: what the method is called in files and commands; `register` sets it.
        paper: authors, venue and number of the paper; empty for a baseline of no paper.
        settings_class: the dataclass of its settings; `register` takes it from the annotation of `settings`.
        distils: where it alone trains, it learns by `distil` in place of the cross-entropy.
    """

    distils: ClassVar[bool] = False
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    settings_class: ClassVar[type[Settings]] = Settings
    settings: Settings

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        self.settings = self.settings_class() if settings is None else settings

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.told().items())

    def loss(self) -> Tensor | None:
        """A term to add to the training loss, of the last forward."""
        return None

    def forget(self) -> None:
        """What `loss` was of is over: a new pass begins, or what was seen was a blank image that stands for none."""

    def distil(self, own: Tensor, full: Tensor) -> Tensor:
        """What a method that `distils` learns by, added up over the answers' tokens.

        Args:
            own: [M, V] logits of the model with its methods at the places that predict an answer's tokens.
            full: [M, V] those of the same model without any method, which no gradient reaches.
        """
        raise NotImplementedError


class VisionReducer(Method):
    """Reduces each image's tokens once, before the projector ("tower") or just after it ("projected").

    Attributes:
        site: see above.
        needs_ids: it asks for `VisionTokens.ids`, which cost a pass over all pixels.
        reads_prompt: it asks for `VisionTokens.text` or `VisionTokens.matched`.
        reads_projected: it acts at site "tower" and asks for `VisionTokens.projected` too.
        expected: what it leaves on average where each image decides and somebody published the mean.
        benchmarks: the project's measurements of speed that it takes part in by default.
        call_limit: how many tensor calls it makes at most, with the reason where that is not the default.
        cuts: it acts inside the tower, by `cut`; `forward` then says what was left.
        greedy: a step of its rule runs for each kept token.
        tells_sizes: it puts into `VisionTokens.sizes` how many patches each of its tokens stands for.
    """

    site: Literal["tower", "projected"] = "tower"
    cuts: ClassVar[bool] = False
    greedy: ClassVar[bool] = False
    tells_sizes: ClassVar[bool] = False
    needs_ids: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = False
    reads_projected: ClassVar[bool] = False
    expected: ClassVar[Expected | None] = None
    benchmarks: ClassVar[tuple[Benchmark, ...]] = ()
    call_limit: ClassVar[CallLimit] = CallLimit()

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self._spared = 0
        asked, resizes = self.restoring, type(self).input_size is not VisionReducer.input_size
        if asked.anchors and (asked.budget is None or resizes or self.cuts):
            raise ReductionError(
                f"{self.name}: anchors={asked.anchors} share a budget between what the method keeps and what gathers the rest: "
                + ("give budget" if asked.budget is None else "nothing of what went is there any more")
            )
        if asked.proportional and not (asked.anchors or self.tells_sizes):
            raise ReductionError(
                f"{self.name}: proportional needs anchors: its own tokens stand for one patch, or it cannot say"
            )
        if asked.calibrated == "all" and asked.calibration is None:
            raise ReductionError(f"{self.name}: calibrated=all needs calibration: RESTORE's is 2")

    def __call__(self, image: VisionTokens) -> Reduced:
        """Reduce, and check that what came out is what the contract asks for."""
        return self._checked(image, super().__call__)

    def directly(self, image: VisionTokens) -> Reduced:
        """The same without a call of the module: of methods without parameters, ranks may make different numbers of them."""
        return self._checked(image, self.forward)

    def _checked(self, image: VisionTokens, reduce: Callable[[VisionTokens], Reduced]) -> Reduced:
        patches, budget, spared = image.features.shape[1], self.budget, 0
        if budget is not None and self.restoring.anchors:
            spared = int(min(budget, patches) * self.restoring.anchors) if budget < patches else 0
        if not spared or budget is None:
            reduced = self.placed(reduce(image), patches)
            check_reduced(self.name, image.features, reduced)
        else:
            self._spared = spared
            try:
                reduced = self.placed(reduce(image), patches)
            finally:
                self._spared = 0
            check_reduced(self.name, image.features, reduced)
            reduced, image.sizes = with_anchors(image.features, reduced, budget)
        if not self.restoring.proportional:
            image.sizes = None
        return reduced

    def forward(self, image: VisionTokens) -> Reduced:
        """Reduce. See `Reduced` for what comes out."""
        raise NotImplementedError

    def cut(self, block: TowerBlock) -> tuple[Tensor | None, Tensor | None]:
        """After a block of the tower: patches that stay [N, P'] bool (None: all), and what to hand to the next call."""
        raise NotImplementedError

    def grow(self, shape: LanguageShape) -> None:
        """Make the parameters whose sizes the model decides, where there are some."""

    def grow_alone(self, features: Tensor) -> None:
        """The same outside a model, for features [N, P, C], always with the same start values."""
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.grow(LanguageShape(features.shape[2]))
            self.to(features.device, features.dtype)

    @property
    def rewrites(self) -> bool:
        """It rewrites embeddings before the language model, by `rewrite`."""
        return False

    def rewrite(self, hidden: Tensor, layout: TokenLayout, whole: Tensor, there: Tensor) -> Tensor:
        """Embeddings [B, L, D] of images' tokens and text, given all projected patches [B, G, D] of which some are there."""
        raise NotImplementedError

    def placed(self, reduced: Reduced, patches: int) -> Reduced:
        """What goes on to the language model, where the release gives more tokens than an image has places."""
        return reduced

    @property
    def restoring(self) -> ReducerSettings:
        """What all reducers take, also where this one takes nothing."""
        return self.settings if isinstance(self.settings, ReducerSettings) else ReducerSettings()

    @property
    def budget(self) -> int | None:
        """Tokens every image leaves with; None where a rule decides. While the method chooses, without those for anchors."""
        budget = self.restoring.budget
        return None if budget is None else budget - self._spared

    @property
    def calibration(self) -> Calibration | None:
        """See the settings."""
        constant = self.restoring.calibration
        return None if constant is None else Calibration(constant, self.restoring.calibrated == "all")

    @property
    def positions(self) -> str:
        """How what is kept is numbered, "contiguous" or "original"."""
        return self.restoring.positions

    @property
    def wants_words(self) -> bool:
        """Whether its rule is about the question's words, so that taking all prompt tokens would be another rule."""
        return False

    @property
    def joint(self) -> bool:
        """Whether the frames of a video are reduced together; methods can whose settings have `frames`."""
        return getattr(self.settings, "frames", None) == "joint"

    def input_size(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """Pixels the tower should see, (height, width); the place to act for methods that resize the image. `patch` in pixels."""
        return height, width

    @property
    def earlier(self) -> tuple[Earlier, ...]:
        """Blocks below the one that made the features which it asks about; the tower keeps their inputs for it."""
        return ()

    def attention(self, image: VisionTokens) -> Tensor:
        """Class attention as this method reads it; shown in pictures also where it reads none. [N, P]"""
        return image.attention()

    def tokens_left(self, patches: int) -> TokensLeft:
        """How many of P patches stay, as far as the settings tell."""
        if self.budget is not None:
            return TokensLeft(min(self.budget, patches), "its budget")
        if self.expected is not None:
            return TokensLeft(max(1, round(self.expected.share * patches)), self.expected.source, exact=False)
        return TokensLeft(patches, UNKNOWN, exact=False)

    @property
    def later_turns(self) -> str:
        """As `DecoderPruner`'s: a choice by the prompt would be another for all turns together, one by the image would not."""
        return "none" if self.reads_prompt else "images"

    def repeats(self, patches: int, kept: int) -> int:
        """How often a step runs where a method's rule is sequential; 0: the number of tensor calls is fixed."""
        return kept if self.greedy else 0

    def width(self, image: VisionTokens, counts: Tensor, *others: Tensor) -> int:
        """The largest count, and the check of features, attention and others for NaN, in the one host synchronisation.

        Raises:
            ReductionError: features or scores are not finite.
        """
        if self.budget is not None and torch.compiler.is_compiling():
            return min(self.budget, image.features.shape[1])
        scores = [score for block in image._blocks.values() for score in block.attention.values()]
        values = [value.aminmax() for value in (image.features, *scores, *others)]
        extremes = [end.float() for pair in values for end in pair]  # NaN passes through aminmax
        largest, *ends = torch.stack([counts.amax().float(), *extremes]).tolist()
        if not all(math.isfinite(end) for end in ends):
            raise ReductionError(f"{self.name}: the image features or their attention hold NaN or infinity")
        return int(largest)


class DecoderPruner(Method):
    """Drops visual tokens just before chosen decoder layers, at prefill.

    A `budget` is counted alike by all pruners: visual tokens per image averaged over the decoder's layers (see
    `ops.token_schedule`).

    Args:
        settings: of the method.
        shape: of the language model.
        layers: before which it acts.

    Attributes:
        layers: it acts just before these (0 is the first).
        positions: rotary positions of what stays: "original" leaves them, "renumbered" makes them consecutive.
        later_turns: what a later turn on a kept cache may bring for the outcome to be that of a fresh run of all turns:
            "none" where the choice depends on the question, "text" where it depends on all images together, "images"
            where it depends on nothing.
        ranks: it computes attention of the prompt to choose by.
        ranks_ahead: for that it needs the keys of the layer about to run, which no cache holds yet.
        gates_in_training: while it trains it weighs tokens and drops none.
        search_targets: what searches on calibration questions can find for it.
    """

    positions: Literal["original", "renumbered"] = "original"
    ranks: ClassVar[bool] = False
    ranks_ahead: ClassVar[bool] = False
    gates_in_training: ClassVar[bool] = False
    search_targets: ClassVar[tuple[SearchTarget, ...]] = ()
    layers: tuple[int, ...]

    def __init__(self, settings: Settings, shape: DecoderShape, layers: Iterable[int]) -> None:
        super().__init__(settings)
        self.depth, self.layers = shape.layers, tuple(sorted(set(layers)))
        if not self.layers or not 0 <= self.layers[0] <= self.layers[-1] < shape.layers:
            accepted = f"within 0 to {shape.layers - 1} and not be empty"
            raise ReductionError(f"{self.name}: layers {list(self.layers)} must lie {accepted}")

    def __call__(self, layer: int, tokens: DecoderTokens) -> Tensor | Merged | None:
        """Say what stays, and check that it is what the contract asks for."""
        kept = super().__call__(layer, tokens)
        check_pruned(self.name, tokens.layout.is_image, kept)
        return kept

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | Merged | None:
        """Say what stays. -> [B, L]: bool drops; float in (0, 1] gates keys while training; None keeps everything.

        Text and padding are not its business.
        """
        raise NotImplementedError

    @property
    def later_turns(self) -> str:
        """See above."""
        return "none"

    def course(self, present: int) -> Course:
        """Visual tokens that each layer sees of an image that comes with so many, as far as the settings tell."""
        return Course((present,) * self.depth, UNKNOWN, exact=False)

    def extra_repr(self) -> str:
        return f"before={list(self.layers)}, {super().extra_repr()}".removesuffix(", ")
