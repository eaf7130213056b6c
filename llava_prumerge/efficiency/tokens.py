"""How many tokens each part of the model sees: text, and visual tokens layer by layer, as a method leaves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_prumerge.efficiency.errors import EfficiencyError, refuse
from llava_prumerge.efficiency.shapes import ModelShape

if TYPE_CHECKING:
    from llava_prumerge.methods.base import DecoderPruner

TEXT = 40
"""Tokens of the prompt around the image: the number the paper states for its cost table."""


@dataclass(frozen=True)
class TokenCounts:
    """One image and its prompt.

    Attributes:
        text: tokens of the prompt.
        visual: visual tokens in each decoder layer.
        tower: patches the vision tower sees, without its class token.
        projected: tokens the projector sees.
        ranked: visual tokens just before each drop inside the decoder, where those that go are chosen by attention.
        ahead: ranking needs keys of a layer that has not run yet.
        reduced: a vision reducer left these.
    """

    text: int
    visual: tuple[int, ...]
    tower: int
    projected: int
    ranked: tuple[int, ...] = ()
    ahead: bool = False
    reduced: bool = False

    def __post_init__(self) -> None:
        if self.text < 0:
            raise EfficiencyError(f"--text {self.text} is not a number of at least 0 tokens")
        if not self.text + min(self.visual):
            raise EfficiencyError("--text 0 leaves layers without visual tokens nothing to work on; take at least 1")

    @property
    def equivalent(self) -> float:
        """Equivalent tokens: visual tokens averaged over the decoder's layers."""
        return sum(self.visual) / len(self.visual)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each layer, text included."""
        return tuple(self.text + count for count in self.visual)

    def told(self, patches: int) -> str:
        """In words: how many of the image's patches each run of layers sees, and the text."""
        runs: list[list[int]] = []
        for count in self.visual:
            if runs and runs[-1][1] == count:
                runs[-1][0] += 1
            else:
                runs.append([1, count])
        seen = ", ".join(f"{count} in {layers} layers" for layers, count in runs)
        if len(runs) == 1:
            return f"{self.visual[0]} of {patches} visual tokens in all layers, {self.text} of text"
        return f"of {patches} visual tokens {seen}; {self.text} of text"

    def grouped(self) -> list[tuple[int, int]]:
        """(tokens, how many layers see so many), text included."""
        return sorted(Counter(self.lengths).items(), reverse=True)


def constant_counts(shape: ModelShape, tokens: int | None = None, text: int = TEXT) -> TokenCounts:
    """The same number of visual tokens in every layer; None is all of them.

    Raises:
        EfficiencyError: a number is negative, or there are more tokens than patches.
    """
    patches = shape.vision.patches
    tokens = patches if tokens is None else tokens
    _check(tokens, patches)
    return TokenCounts(text, (tokens,) * shape.language.layers, patches, tokens)


def layered_counts(shape: ModelShape, written: str, text: int = TEXT) -> TokenCounts:
    """Visual tokens by runs of layers, "2x576,30x144": two layers with 576, then 30 with 144.

    Raises:
        EfficiencyError: it cannot be read, does not add up to the model's layers, or dropped tokens return.
    """
    form = "such as 2x576,30x144 (layers x tokens, first layers first)"
    try:
        runs = [tuple(int(number) for number in run.split("x")) for run in written.split(",")]
        visual = [tokens for layers, tokens in runs for _ in range(layers)]
    except ValueError:
        raise EfficiencyError(f"--per-layer {written!r} is not of the form {form}") from None
    if len(visual) != shape.language.layers or min(layers for layers, _ in runs) < 0:
        raise EfficiencyError(
            f"--per-layer {written!r} tells of {len(visual)} layers, {shape.name} has {shape.language.layers}"
        )
    if any(later > earlier for earlier, later in zip(visual, visual[1:])):
        raise EfficiencyError(f"--per-layer {written!r} rises; dropped tokens do not return")
    for tokens in (visual[0], visual[-1]):
        _check(tokens, shape.vision.patches)
    drops = tuple(before for before, after in zip(visual, visual[1:]) if after < before)
    return TokenCounts(text, tuple(visual), shape.vision.patches, visual[0], drops)


def method_counts(
    shape: ModelShape,
    method: str,
    tokens: float | None = None,
    text: int = TEXT,
    settings: Mapping[str, Any] | None = None,
) -> TokenCounts:
    """What a method of this repository leaves. The only function here that loads torch: methods are built to be asked.

    Args:
        shape: of the model.
        method: a vision reducer or a decoder pruner, by name.
        tokens: visual tokens of the image; of a pruner, averaged over the layers (equivalent tokens).
        text: tokens of the prompt.
        settings: of the method.

    Raises:
        EfficiencyError: the method is not known, or its numbers follow from the image alone and are not given.
        ReductionError: the method refuses its settings.
    """
    from llava_prumerge.methods.base import DecoderPruner, DecoderShape
    from llava_prumerge.methods.registry import build_pruner, discover

    methods = discover()
    if method not in methods:
        raise refuse("method", method, methods)
    if tokens is not None:
        _check(tokens, shape.vision.patches)
        if "budget" in (settings or {}):
            raise EfficiencyError(f"--tokens {tokens:g} is the budget; leave out budget={settings['budget']}")
    if not issubclass(methods[method], DecoderPruner):
        return _reduced(shape, method, tokens, text, settings or {})
    block = {"name": method, **(settings or {})}
    if tokens is not None:
        block["budget"] = tokens
    if "target" in _fields(method):
        raise EfficiencyError(
            f"{method} learns how many tokens each image keeps; give --per-layer, such as 4x576,28x82"
        )
    language = shape.language
    pruner = build_pruner(block, DecoderShape(language.layers, language.hidden, language.heads, shape.vision.patches))
    visual, ranked = _after(pruner, shape)
    return TokenCounts(text, visual, shape.vision.patches, visual[0], ranked, method in RANKS_AHEAD)


RANKS_AHEAD = ("pyramiddrop",)
"""Pruners that rank by the keys of the layer about to run; the others find those of the layer before in its cache."""


def _fields(method: str) -> set[str]:
    from llava_prumerge.methods.registry import discover, fields_of

    return set(fields_of(discover()[method]))


def _reduced(
    shape: ModelShape, method: str, tokens: float | None, text: int, settings: Mapping[str, Any]
) -> TokenCounts:
    """Behind a vision reducer, which leaves the same number to all layers."""
    from llava_prumerge.methods.registry import build_reducer

    vision, patches = shape.vision, shape.vision.patches
    if method == "none":
        if tokens not in (None, patches):
            raise EfficiencyError(f"none keeps all {patches} tokens; leave out --tokens {tokens:g} or name a method")
        return constant_counts(shape, None, text)
    if tokens is None or tokens != int(tokens) or tokens < 1:
        given = "none are given" if tokens is None else f"{tokens:g} is not one"
        raise EfficiencyError(f"{method} needs --tokens, a whole number from 1 to {patches} for each image; {given}")
    reducer = build_reducer({"name": method, **settings, "budget": int(tokens)})
    height, width = reducer.input_size(vision.image, vision.image, vision.patch)
    seen = (height // vision.patch) * (width // vision.patch)
    projected = seen if reducer.site == "projected" else int(tokens)
    return TokenCounts(text, (int(tokens),) * shape.language.layers, seen, projected, reduced=True)


def _after(pruner: DecoderPruner, shape: ModelShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Visual tokens in each layer, and before each drop that is ranked."""
    layers, patches = shape.language.layers, shape.vision.patches
    schedule = getattr(pruner, "schedule", None)
    if schedule is None:  # withdraws them all before one layer
        return (patches,) * pruner.layer + (0,) * (layers - pruner.layer), ()
    visual, plan = [patches] * layers, schedule.plan(patches)
    for start, count in zip(schedule.drops, plan):
        visual[start:] = [count] * (layers - start)
    ranked = tuple(before for before, after in zip((patches, *plan), plan) if after < before)
    return tuple(visual), ranked


def _check(tokens: float, patches: int) -> None:
    if not 0 <= tokens <= patches:
        raise EfficiencyError(f"--tokens {tokens:g} is not within 0 to {patches}, the patches of an image")
