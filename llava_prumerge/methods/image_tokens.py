"""What a vision reducer sees of a batch of images: features, attention and keys of the tower's blocks, the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from torch import Tensor

from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.select import BlockProjections


@dataclass(frozen=True)
class Earlier:
    """A block of the tower below the one that made the features, whatever the tower's depth.

    Attributes:
        part: of the way from the first block (0) to the one that made the features (1), rounded to a whole block.
    """

    part: Fraction

    def index(self, own: int) -> int:
        """Its number, counted from 0, where `own` is that of the block that made the features."""
        return round(self.part * own)


@dataclass(frozen=True)
class LanguageShape:
    """The sizes that a reducer with parameters may need; those of the language model are 0 where none is there.

    Attributes:
        width: C, of the tower's features.
        hidden, inner, heads, kv_heads, theta, eps: of the language model: D, its MLP, its attention, the base of its rotary
            embedding, and of its norms.
    """

    width: int
    hidden: int = 0
    inner: int = 0
    heads: int = 0
    kv_heads: int = 0
    theta: float = 10000.0
    eps: float = 1e-5


@dataclass(frozen=True)
class TowerBlock:
    """What a reducer that cuts inside the tower sees after a block has run on the class token and P' patches.

    Attributes:
        queries: [N, 1, C] the class token's query projection.
        keys, values: [N, 1 + P', C] projections of all tokens, the class token first.
        heads: of the block.
        real: [N, P'] bool, False for padding.
        carried: [N, P'] what the reducer gave after the block before, of the patches that stayed; None at first.
        left: blocks to come before the one that makes the features.
        patches: P, that the tower began with.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    heads: int
    real: Tensor
    carried: Tensor | None
    left: int
    patches: int


@dataclass
class VisionTokens:
    """What a vision reducer sees of a batch of images; costly parts are computed on first use.

    Attributes:
        features: [N, P, C] patch features the projector would get; [N, P, D] at site "projected".
        grid: (rows, columns) of the patches; their product is P.
        projections: gives the query projections [N, R, C] (R = 1: the class token; R = P where the tower has none) and
            the key projections [N, S, C] of the block that reads the features; S = 1 + P with a class token, else P.
            With own=True those of the block that made the features, with an `Earlier` those of a block below it.
            Where the T frames of a video are reduced together they are of each frame, [N x T, ...], and P counts all frames.
        heads: attention heads of these blocks.
        prompt: gives the prompt's token embeddings [N, T, D] and their mask [N, T] for each image.
        question: gives the embeddings [N, T, D] of the question's words that say what it is about, and their mask [N, T];
            None where nobody knows the words.
        clip: gives patches [N, P, E], prompt [N, T, E] and its mask [N, T] in the space of a tower with a text side.
        ids: [N] int64, a number that stays with an image whatever batch it comes in.
        class_token: [N, 1, C] the class token's feature beside those of the patches; None where the tower has none, and
            at site "projected".
        unprojected: [N, P, C] at site "projected", the features before the projector.
        projected: [N, P, D] at site "tower", the features behind the projector, where the method `reads_projected`.
        overview: [N] int64, the tile of this batch that shows the whole of the image a tile was cut from, itself where it
            is that one; None: every tile is a whole image.
        left: [N, P] raster index of each patch, where a reducer has cut inside the tower, so that P is no longer rows times
            columns; None: every patch is there.
        boxes: [N, 4] float32 what part of its overview a tile shows: top, left, bottom and right in parts of its height and
            width; None where the family does not say.
        padding: gives [N, P] bool, patches that show nothing but the padding which makes an image square.
        sizes: [N, K] float32, what a reducer that is asked to adds to its answer: patches that each token stands for.
    """

    features: Tensor
    grid: tuple[int, int]
    projections: Callable[..., tuple[Tensor, Tensor]] | None = None
    heads: int = 1
    prompt: Callable[[], tuple[Tensor, Tensor]] | None = None
    ids: Tensor | None = None
    clip: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    class_token: Tensor | None = None
    unprojected: Tensor | None = None
    projected: Tensor | None = None
    overview: Tensor | None = None
    left: Tensor | None = None
    boxes: Tensor | None = None
    padding: Callable[[], Tensor] | None = None
    question: Callable[[], tuple[Tensor, Tensor]] | None = None
    sizes: Tensor | None = None
    _blocks: dict[bool | Earlier, BlockProjections] = field(default_factory=dict, repr=False)

    def block(self, own: bool | Earlier = False) -> BlockProjections:
        """Projections of the block that reads the features, of their own (the one that made them), or of one before it."""
        if self.projections is None:
            raise ReductionError("this method needs attention of the vision tower, and the tower gave none")
        if own not in self._blocks:
            projections = self.projections(own=own) if own else self.projections()
            images, patches = self.features.shape[:2]
            frames = len(projections[0]) // images
            self._blocks[own] = BlockProjections(*projections, self.heads, patches, frames)
        return self._blocks[own]

    @property
    def before_projector(self) -> Tensor:
        """Features before the projector, at either site. [N, P, C]"""
        return self.features if self.unprojected is None else self.unprojected

    @property
    def keys(self) -> Tensor:
        """Key projections of the patches. [N, P, C]"""
        return self.block().patch_keys

    def attention(self, per_head: bool = False, own: bool | Earlier = False) -> Tensor:
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

    def space(self, wanted: str) -> str:
        """The space in which patches and prompt are compared: "auto" is "clip" where that is given, else "llm"."""
        return ("llm" if self.clip is None else "clip") if wanted == "auto" else wanted

    def matched(self, space: str) -> tuple[Tensor, Tensor, Tensor]:
        """Patches, prompt and its mask in one space: "llm" (behind the projector) or "clip"."""
        if space != "clip":
            given = self.features if self.projected is None else self.projected, self.text, self.text_mask
        elif self.clip is None:
            raise ReductionError(
                "space 'clip' needs a tower with its text side, and this one has none: name the whole model with clip=FOLDER, "
                "or take space llm"
            )
        else:
            given = self.clip()
        if given[1].shape[1] == 0:
            raise ReductionError("this method needs a prompt, and the prompt is empty")
        return given
