"""How many tokens each part of the model sees: text, and visual tokens layer by layer, as a method leaves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.shapes import ModelShape
from llava_prumerge.methods.cost import Course, TokensLeft
from llava_prumerge.methods.labels import method_name
from llava_prumerge.methods.resolve import Block, Described, resolve

if TYPE_CHECKING:
    from llava_prumerge.model.image_shape import ImageShape

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
        kept: tokens that a vision reducer leaves; None without one.
        source: where the numbers come from.
        exact: every image is left with so many; else they are an expectation.
        known: there is at least an expectation.
    """

    text: int
    visual: tuple[int, ...]
    tower: int
    projected: int
    ranked: tuple[int, ...] = ()
    ahead: bool = False
    kept: int | None = None
    source: str = ""
    exact: bool = True
    known: bool = True

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
        note = "" if self.exact else f" (expected; {self.source})"
        if len(runs) == 1:
            return f"{self.visual[0]} of {patches} visual tokens in all layers, {self.text} of text{note}"
        return f"of {patches} visual tokens {seen}; {self.text} of text{note}"

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
    return TokenCounts(text, (tokens,) * shape.language.layers, shape.vision.seen, tokens)


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
    return TokenCounts(text, tuple(visual), shape.vision.seen, visual[0], drops)


def method_counts(
    shape: ModelShape,
    method: Described,
    tokens: float | None = None,
    text: int = TEXT,
    settings: Mapping[str, Any] | None = None,
) -> TokenCounts:
    """What a method leaves. Loads torch: methods are built to be asked.

    Args:
        shape: of the model.
        method: a vision reducer, a decoder pruner or both, described in any way that `methods.resolve` reads.
        tokens: its budget: visual tokens of the image; of a pruner, averaged over the layers (equivalent tokens).
        text: tokens of the prompt.
        settings: of the method.

    Raises:
        EfficiencyError: its numbers follow from the image alone, nobody published their mean, and none are given.
        ReductionError: the method is not known, or refuses its settings.
    """
    block = method_block(shape, method, tokens, settings)
    counts = reduction_counts(shape, block, text)
    if not counts.known:
        raise EfficiencyError(
            f"{method_name(block)} needs --tokens, from 1 to {shape.vision.patches} for each image; how many it keeps is "
            "unknown before the images are seen"
        )
    return counts


def method_block(
    shape: ModelShape, method: Described, tokens: float | None = None, settings: Mapping[str, Any] | None = None
) -> Block:
    """The reduction block of a method with a budget; see `method_counts`."""
    block, patches = resolve(method, settings) or {}, shape.vision.patches
    if tokens is None:
        return block
    _check(tokens, patches)
    if budgets := [part["budget"] for part in block.values() if part.get("budget") is not None]:
        raise EfficiencyError(f"--tokens {tokens:g} is the budget; leave out budget={budgets[0]}")
    if not block and tokens != patches:
        raise EfficiencyError(f"none keeps all {patches} tokens; leave out --tokens {tokens:g} or name a method")
    cut = shape.vision.cut
    if cut is not None and set(block) == {"vision"}:  # a reducer's budget is that of a tile
        tokens = max(1, (tokens - cut.special) // cut.tiles)
    return resolve(block, {"budget": int(tokens) if tokens == int(tokens) else tokens}) or {} if block else {}


def reduction_counts(shape: ModelShape, reduction: Block, text: int = TEXT, training: bool = False) -> TokenCounts:
    """What the methods of a block leave of an image, as they tell it themselves. Loads torch.

    Args:
        shape: of the model.
        reduction: the block.
        text: tokens of the prompt.
        training: while the model trains, when some pruners weigh tokens and drop none.

    Raises:
        ReductionError: the methods refuse their settings, or cannot work together.
    """
    from llava_prumerge.methods.base import DecoderShape
    from llava_prumerge.methods.registry import build_pruner, build_reducer

    vision, language, patches = shape.vision, shape.language, shape.vision.patches
    reducer = build_reducer(reduction.get("vision"))
    left, seen, projected, sources = TokensLeft(patches, "every patch stays"), vision.seen, patches, []
    if reducer is not None:
        if vision.cut is None:
            height, width = reducer.input_size(vision.image, vision.image, vision.patch)
            seen, left = (height // vision.patch) * (width // vision.patch), reducer.tokens_left(patches)
        else:
            left = _left_of_tiles(reducer, vision.cut)
        projected = seen if reducer.site == "projected" else left.tokens
        sources.append(f"{reducer.name}: {left.source}")
    reduced = reducer is not None and not (left.exact and left.tokens == patches)
    places = patches if vision.cut is None else None
    among = DecoderShape(language.layers, language.hidden, language.heads, places, reduced=reduced)
    pruner = build_pruner(reduction.get("decoder"), among)
    course, ranked = Course((left.tokens,) * language.layers, left.source), ()
    if pruner is not None and training and pruner.gates_in_training:
        sources.append(f"{pruner.name} weighs tokens while it trains, and drops them afterwards alone")
    elif pruner is not None:
        course = pruner.course(left.tokens)
        ranked = course.before_drops(left.tokens) if pruner.ranks else ()
        sources.append(f"{pruner.name}: {course.source}")
    return TokenCounts(
        text,
        tuple(round(count) for count in course.visual),
        seen,
        projected,
        tuple(round(count) for count in ranked),
        ahead=pruner is not None and pruner.ranks_ahead,
        kept=left.tokens if reducer is not None else None,
        source="; ".join(sources) or left.source,
        exact=left.exact and course.exact,
        known=left.known and course.known,
    )


def _left_of_tiles(reducer: Any, cut: ImageShape) -> TokensLeft:
    """What is left of all tiles, and of what is no patch; an expectation where patches at the border were cut away."""
    each = reducer.tokens_left(cut.units)
    total = cut.tiles * each.tokens + cut.special
    exact = each.exact and cut.tiles * cut.units + cut.special == cut.tokens
    source = each.source if cut.tiles == 1 else f"{each.source}, {each.tokens} of each of {cut.tiles} tiles"
    return replace(each, tokens=min(total, cut.tokens), exact=exact, source=source)


def _check(tokens: float, patches: int) -> None:
    if not 0 <= tokens <= patches:
        raise EfficiencyError(f"--tokens {tokens:g} is not within 0 to {patches}, the patches of an image")
