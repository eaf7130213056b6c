"""The two contracts: a `VisionReducer` acts between tower and projector, a `DecoderPruner` before chosen decoder layers.

A method only says what to keep. It never touches masks, positions, labels or caches, and does not know which model it runs in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from llava_prumerge.ops.cells import Cells, best_rows, cell_rows, lay_cells
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout
from llava_prumerge.ops.scores import BlockProjections, outlier_count

Reduced = tuple[Tensor, Tensor, Tensor]
"""features [N, K, C or D], valid [N, K] bool, origin [N, K] (raster index each token stands for, -1 = none)."""


def is_whole(value: object, least: int) -> bool:
    """Whether a setting is a whole number of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass
class VisionTokens:
    """What a vision reducer sees of a batch of images; costly parts are computed on first use.

    Attributes:
        features: [N, P, C] patch features the projector would get; [N, P, D] at site "projected".
        grid: (rows, columns) of the patches; their product is P.
        probe: gives the query projections [N, R, C] (R = 1: the class token; R = P where the tower has none) and the key projections
            [N, S, C] of the block that reads the features; S = 1 + P with a class token, else P. With own=True those of
            the block that made the features.
        heads: attention heads of these blocks.
        prompt: gives the prompt's token embeddings [N, T, D] and their mask [N, T] for each image.
        clip: gives patches [N, P, E], prompt [N, T, E] and its mask [N, T] in the space of a tower with a text side.
        ids: [N] int64, a number that stays with an image whatever batch it comes in.
    """

    features: Tensor
    grid: tuple[int, int]
    probe: Callable[..., tuple[Tensor, Tensor]] | None = None
    heads: int = 1
    prompt: Callable[[], tuple[Tensor, Tensor]] | None = None
    ids: Tensor | None = None
    clip: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    _blocks: dict[bool, BlockProjections] = field(default_factory=dict, repr=False)

    def block(self, own: bool = False) -> BlockProjections:
        """Projections of the block that reads the features, or of their own: the one that made them."""
        if self.probe is None:
            raise ReductionError("this method needs attention of the vision tower, and the tower gave none")
        if own not in self._blocks:
            projections = self.probe(own=True) if own else self.probe()
            self._blocks[own] = BlockProjections(*projections, self.heads, self.features.shape[1])
        return self._blocks[own]

    @property
    def keys(self) -> Tensor:
        """Key projections of the patches. [N, P, C]"""
        return self.block().patch_keys

    def attention(self, per_head: bool = False, own: bool = False) -> Tensor:
        """Attention each patch receives from the class token (mean over all patches where there is none), float32. [N, P]"""
        return self.block(own).received(self.heads if per_head else 1)

    @cached_property
    def _prompted(self) -> tuple[Tensor, Tensor]:
        if self.prompt is None:
            raise ReductionError("this method needs the prompt's embeddings, and none were given")
        return self.prompt()

    @property
    def text(self) -> Tensor:
        """Prompt embeddings in the language model's space. [N, T, D]"""
        return self._prompted[0]

    @property
    def text_mask(self) -> Tensor:
        """Which of `text` is real. [N, T] bool"""
        return self._prompted[1]

    def matched(self, space: str) -> tuple[Tensor, Tensor, Tensor]:
        """Patches, prompt and its mask in one space: "llm" (the features at site "projected") or "clip"."""
        if space == "clip" and self.clip is None:
            raise ReductionError("space 'clip' needs a tower with its text side, and this one has none; take space llm")
        given = self.clip() if space == "clip" else (self.features, self.text, self.text_mask)
        if given[1].shape[1] == 0:
            raise ReductionError("this method needs a prompt, and the prompt is empty")
        return given


POSITIONS, BLOCKS, SPACES = ("contiguous", "original"), ("own", "next"), ("llm", "clip")


class VisionReducer(nn.Module):
    """Reduces each image's tokens once, before the projector ("tower") or just after it ("projected").

    Args:
        budget: tokens every image leaves with, exactly; None counts each image's outliers (adaptive).
        iqr_factor: Tukey's factor of the outlier rule that counts.
        per_head: score by the mean over attention heads instead of one head of the whole width (the released PruMerge).
        positions: "contiguous" numbers what is kept as LLaVA does; "original" leaves each token the position of its patch.

    Attributes:
        site: see above.
        needs_ids: it asks for `VisionTokens.ids`, which cost a pass over all pixels.
        reads_prompt: it asks for `VisionTokens.text` or `VisionTokens.matched`.
    """

    site: ClassVar[str] = "tower"
    name: ClassVar[str] = ""
    needs_ids: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = False

    def __init__(
        self, budget: int | None = None, iqr_factor: float = 1.5, per_head: bool = False, positions: str = "contiguous"
    ) -> None:
        super().__init__()
        self.check(budget is None or is_whole(budget, 1), "budget", budget, "a positive whole number")
        self.check(positions in POSITIONS, "positions", positions, f"one of {', '.join(POSITIONS)}")
        self.budget, self.iqr_factor, self.per_head, self.positions = budget, float(iqr_factor), per_head, positions

    def input_size(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """Pixels the tower should see, (height, width); the place to act for methods that resize the image. `patch` in pixels."""
        return height, width

    def forward(self, image: VisionTokens) -> Reduced:
        """Reduce. See `Reduced` for what comes out."""
        raise NotImplementedError

    @property
    def later_turns(self) -> str:
        """As `DecoderPruner`'s: a choice by the prompt would be another for all turns together, one by the image would not."""
        return "none" if self.reads_prompt else "images"

    def repeats(self, patches: int, kept: int) -> int:
        """How often a step runs where a method's rule is sequential; 0: the number of tensor calls is fixed."""
        return 0

    def check(self, right: bool, key: str, value: object, accepted: str) -> None:
        """Refuse a setting that is not right, naming what is accepted."""
        if not right:
            raise ReductionError(f"{self.name}: {key} {value!r} is not {accepted}")

    def counts(self, image: VisionTokens) -> Tensor:
        """How many tokens each image keeps: the budget, or the number of its outliers, at least one. [N]"""
        images, patches = image.features.shape[:2]
        if self.budget is not None:
            return torch.full((images,), min(self.budget, patches), device=image.features.device)
        return outlier_count(image.attention(self.per_head), self.iqr_factor).clamp(min=1)

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

    def extra_repr(self) -> str:
        shown = {key: value for key, value in vars(self).items() if not key.startswith("_") and key != "training"}
        return ", ".join(f"{key}={value!r}" for key, value in sorted(shown.items()))


class ShareReducer(VisionReducer):
    """A reducer that leaves every image with the same number of tokens: a share of the patches, or the budget.

    Args:
        keep: share of the patches, rounded up; a number or a fraction such as 1/9.
        budget: tokens instead, exactly.
        positions: see `VisionReducer`.
    """

    def __init__(self, keep: float | str, budget: int | None = None, positions: str = "contiguous") -> None:
        super().__init__(budget=budget, positions=positions)
        self.keep = self.as_share("keep", keep)

    def as_share(self, key: str, value: float | str) -> Fraction:
        """A setting in (0, 1], read as the exact fraction it is written as."""
        share = Fraction(0)
        with suppress(ValueError, ZeroDivisionError):
            share = Fraction(str(value))
        self.check(0 < share <= 1, key, value, "a number in (0, 1] or a fraction such as 1/9")
        return share

    def counts(self, image: VisionTokens) -> Tensor:
        """The same number for each image. [N]"""
        images, patches = image.features.shape[:2]
        wanted = math.ceil(self.keep * patches) if self.budget is None else self.budget
        return torch.full((images,), min(wanted, patches), device=image.features.device)


class CellReducer(VisionReducer):
    """A reducer whose tokens stand for cells of the image, cut into rows and columns.

    Args:
        rows, columns: cut every image so (the paper's "5x8"); together, and in place of a budget.
        Others: see `VisionReducer`. A budget or a count that is not rows x columns gives some rows one cell more than others.
    """

    def __init__(self, rows: int | None = None, columns: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if (rows is None) != (columns is None):
            raise ReductionError(f"{self.name}: rows={rows} and columns={columns} are given together or not at all")
        if rows is not None:
            if self.budget is not None:
                raise ReductionError(f"{self.name}: give rows and columns or budget={self.budget}, not both")
            self.check(is_whole(rows, 1), "rows", rows, "a positive whole number")
            self.check(is_whole(columns, 1), "columns", columns, "a positive whole number")
            self.budget = rows * columns
        self.rows, self.columns = rows, columns

    def fitted(self, height: int, width: int) -> None:
        """Check that rows and columns, where given, fit into the grid."""
        if self.rows is not None and (self.rows > height or self.columns > width):
            cells = f"{self.rows} x {self.columns} cells"
            raise ReductionError(f"{self.name}: {cells} do not fit in {height} x {width} patches")

    def cells(self, image: VisionTokens) -> Cells:
        """The cells of each image; costs the reducer's one host synchronisation."""
        self.fitted(*image.grid)
        counts = self.counts(image)
        if self.budget is None:
            rows = cell_rows(counts, *image.grid)
        else:
            height, width = image.grid
            rows = torch.full_like(counts, self.rows or best_rows(min(self.budget, height * width), height, width))
        return lay_cells(counts, rows, self.width(image, counts), image.grid)


class AttentionRows(Protocol):
    """Gives attention rows of a decoder layer, whatever attention backend runs."""

    def __call__(self, layer: int, rows: Tensor) -> Tensor:
        """Softmax attention of query rows [B, R] of `layer` (this one or the one before). -> [B, H, R, L]"""


@dataclass
class DecoderTokens:
    """What a decoder pruner sees just before a layer; what it asks for is computed from a layer's own projections.

    Attributes:
        hidden: [B, L, D] the layer's input.
        layout: what each place holds.
        attention: attention rows of this layer or of the one before, gates of earlier layers included.
        queries, keys: layer (this one or the one before) -> its rotated projections [B, H, L, D/H]; the keys' heads as
            often as needed.
        mean_query: layer, weights [B, L] -> the weighted mean of its queries [B, H, 1, D/H], much cheaper than the
            queries themselves.
    """

    hidden: Tensor
    layout: TokenLayout
    attention: AttentionRows
    queries: Callable[[int], Tensor] | None = None
    keys: Callable[[int], Tensor] | None = None
    mean_query: Callable[[int, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a language model that a pruner may need.

    Attributes:
        layers, hidden, heads: of the decoder: their number, D, H.
        patches: P, visual tokens of one image where no reducer takes any.
        reduced: a reducer stands before the decoder, so that images may come with fewer than P tokens.
    """

    layers: int
    hidden: int
    heads: int
    patches: int
    reduced: bool = False


class DecoderPruner(nn.Module):
    """Drops visual tokens just before chosen decoder layers, at prefill.

    A `budget` is counted alike by all pruners: visual tokens per image averaged over the decoder's layers (see
    `ops.token_schedule`).

    Attributes:
        layers: it acts just before these (0 is the first).
        later_turns: what a later turn on a kept cache may bring for the outcome to be that of a fresh run of all turns:
            "none" where the choice depends on the question, "text" where it depends on all images together, "images"
            where it depends on nothing.
    """

    name: ClassVar[str] = ""
    layers: tuple[int, ...]
    later_turns: str = "none"

    def __init__(self, shape: DecoderShape, layers: tuple[int, ...]) -> None:
        super().__init__()
        wrong = [layer for layer in layers if not 0 <= layer < shape.layers]
        if wrong or not layers:
            accepted = f"within 0 to {shape.layers - 1} and not be empty"
            raise ReductionError(f"{self.name}: layers {list(layers)} must lie {accepted}")
        self.layers = tuple(sorted(layers))

    def forward(self, layer: int, tokens: DecoderTokens) -> Tensor | None:
        """Say what stays. -> [B, L]: bool drops; float in (0, 1] gates keys while training; None keeps everything.

        Text and padding are not its business.
        """
        raise NotImplementedError

    def loss(self) -> Tensor | None:
        """A term to add to the training loss, of the last forward."""
        return None


_REGISTRY: dict[str, type[VisionReducer] | type[DecoderPruner]] = {}
Method = TypeVar("Method", bound=type)


def register(name: str) -> Callable[[Method], Method]:
    """Enter a method under a name; the name must be new."""

    def enter(cls: Method) -> Method:
        if name in _REGISTRY:
            raise ReductionError(f"two methods are called {name!r}: {_REGISTRY[name].__module__} and {cls.__module__}")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return enter
