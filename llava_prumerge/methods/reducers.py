"""What vision reducers share: how many tokens stay, by a rule of their own, by outliers, a share of the patches, or cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from llava_prumerge.methods.base import ReducerSettings, VisionReducer, VisionTokens
from llava_prumerge.methods.cost import TokensLeft
from llava_prumerge.methods.settings import at_least, fraction, setting
from llava_prumerge.ops.cells import Cells, best_rows, cell_rows, lay_cells
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.retrieval import queries_of
from llava_prumerge.ops.select import outlier_count


class CountingReducer(VisionReducer):
    """A reducer that leaves an image with the budget, or with as many tokens as a rule counts."""

    settings: ReducerSettings

    def counts(self, image: VisionTokens) -> Tensor:
        """How many tokens each image keeps: the budget, or what the rule counts; at least one, at most all. [N]"""
        images, patches = image.features.shape[:2]
        if self.budget is not None:
            return torch.full((images,), min(self.budget, patches), device=image.features.device)
        return self.own_counts(image).clamp(1, patches)

    def own_counts(self, image: VisionTokens) -> Tensor:
        """What the rule counts where there is no budget; `counts` bounds it. [N]"""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FrameSettings(ReducerSettings):
    """Of reducers that know of no places in an image, so that the frames of a video can be one image to them."""

    frames: Literal["each", "joint"] = setting(
        "each",
        "of a video: each frame by itself, or joint for all together, whose budget, outliers and neighbours are the video's",
        source="ours",
    )


@dataclass(frozen=True, kw_only=True)
class OutlierSettings(ReducerSettings):
    """Of reducers that keep as many tokens as an image has outliers."""

    iqr_factor: float = setting(1.5, "Tukey's factor of the outlier rule that counts", source="released PruMerge")
    per_head: bool = setting(
        False,
        "class attention is the mean over heads instead of one head of the whole width",
        source="released PruMerge",
    )


class OutlierReducer(CountingReducer):
    """A reducer that leaves an image with as many tokens as its class attention has outliers, or with the budget."""

    settings: OutlierSettings

    def attention(self, image: VisionTokens) -> Tensor:
        """As the settings want it. [N, P]"""
        return image.attention(self.settings.per_head)

    def own_counts(self, image: VisionTokens) -> Tensor:
        """The number of its outliers. [N]"""
        return outlier_count(self.attention(image), self.settings.iqr_factor)


@dataclass(frozen=True, kw_only=True)
class ShareSettings(ReducerSettings):
    """Of reducers that keep a share of the patches."""

    keep_ratio: Fraction = setting("1/9", "share of the patches that stays, rounded up", fraction(), formerly="keep")


class ShareReducer(VisionReducer):
    """A reducer that leaves every image with the same number of tokens: a share of the patches, or the budget."""

    settings: ShareSettings

    def rounding(self, share: Fraction) -> int:
        """The share of the patches in whole tokens: up, unless the authors' code does otherwise."""
        return math.ceil(share)

    def tokens_left(self, patches: int) -> TokensLeft:
        """The budget, or the share in whole tokens, at least one."""
        if self.budget is not None:
            return super().tokens_left(patches)
        return TokensLeft(max(1, self.rounding(self.settings.keep_ratio * patches)), "its share")

    def counts(self, image: VisionTokens) -> Tensor:
        """The same number for each image. [N]"""
        images, patches = image.features.shape[:2]
        left = ShareReducer.tokens_left(self, patches).tokens
        return torch.full((images,), left, device=image.features.device)


@dataclass(frozen=True, kw_only=True)
class CellSettings(OutlierSettings):
    """Of reducers whose tokens stand for cells of the image."""

    rows: int | None = setting(
        None, "cut every image into so many rows; with columns, in place of a budget", at_least(1)
    )
    columns: int | None = setting(None, "cells of each row; with rows", at_least(1))

    def check(self) -> None:
        if (self.rows is None) != (self.columns is None):
            raise ReductionError(f"rows={self.rows} and columns={self.columns} are given together or not at all")
        if self.rows is not None and self.budget is not None:
            raise ReductionError(f"give rows and columns or budget={self.budget}, not both")


class CellReducer(OutlierReducer):
    """A reducer whose tokens stand for cells of the image, cut into rows and columns.

    A budget or a count that is not rows x columns gives some rows one cell more than others.
    """

    settings: CellSettings

    @property
    def budget(self) -> int | None:
        """Cells of every image, where that is settled."""
        rows, columns = self.settings.rows, self.settings.columns
        return self.settings.budget if rows is None or columns is None else rows * columns

    def fitted(self, height: int, width: int) -> None:
        """Check that rows and columns, where given, fit into the grid."""
        rows, columns = self.settings.rows, self.settings.columns
        if rows is not None and columns is not None and (rows > height or columns > width):
            raise ReductionError(f"{self.name}: {rows} x {columns} cells do not fit in {height} x {width} patches")

    def cells(self, image: VisionTokens) -> Cells:
        """The cells of each image; costs the reducer's one host synchronisation."""
        self.fitted(*image.grid)
        counts = self.counts(image)
        if self.budget is None:
            rows = cell_rows(counts, *image.grid)
        else:
            height, width = image.grid
            best = self.settings.rows or best_rows(min(self.budget, height * width), height, width)
            rows = torch.full_like(counts, best)
        return lay_cells(counts, rows, self.width(image, counts), image.grid)


@dataclass(frozen=True, kw_only=True)
class BlockSettings(ShareSettings):
    """Of reducers that look at one block of the tower."""

    block: Literal["own", "next"] = setting(
        "own",
        "whose attention and keys: own is the block that made the features, next the one that would read them",
        source="released code",
    )


class BlockReducer(ShareReducer):
    """A reducer that looks at one block of the tower, with its true heads."""

    settings: BlockSettings

    @property
    def own(self) -> bool:
        """It is the block that made the features."""
        return self.settings.block == "own"

    def attention(self, image: VisionTokens) -> Tensor:
        """Of that block, the mean over heads. [N, P]"""
        return image.attention(per_head=True, own=self.own)


@dataclass(frozen=True, kw_only=True)
class TemplateSettings(ReducerSettings):
    """Of reducers that read the prompt."""

    before: int = setting(
        0,
        "prompt tokens of the conversation's template at its beginning, which ask nothing",
        at_least(0),
        source="ours",
    )
    after: int = setting(0, "the same at its end", at_least(0), source="ours")


@dataclass(frozen=True, kw_only=True)
class WordSettings(ShareSettings, TemplateSettings):
    """Of reducers that keep a share of the patches and look for the question's words in them."""

    text: Literal["auto", "words", "all"] = setting(
        "auto",
        "words takes the words behind the image that say what is asked, all every prompt token, auto words where the "
        "model's tokenizer is known",
        source="released MMTok; all is ours",
    )


class WordReducer(ShareReducer):
    """A reducer behind the projector that looks for the question's words among the patches."""

    site, reads_prompt = "projected", True
    settings: WordSettings

    @property
    def wants_words(self) -> bool:
        """See the base class."""
        return self.settings.text != "all"

    def asked(self, image: VisionTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Patches [N, P, D], text [N, T, D] in the language model's space, and which of it asks. [N, T] bool"""
        projected, text, mask = image.matched("llm")
        if self.settings.text == "words" or (self.settings.text == "auto" and image.question is not None):
            if image.question is None:
                raise ReductionError(
                    f"{self.name}: text 'words' needs the model's tokenizer (attach(..., tokenizer=processor)); or take text all"
                )
            text, queries = image.question()
        else:
            queries = queries_of(mask, self.settings.before, self.settings.after)
        return projected, text, queries


@dataclass(frozen=True, kw_only=True)
class MatchSettings(TemplateSettings):
    """Of reducers that compare patches with the prompt in one space."""

    space: Literal["llm", "clip", "auto"] = setting(
        "llm",
        "where they are compared: llm (projected tokens and prompt embeddings), clip (a tower with its text side) or auto "
        "(clip where there is a text side, else llm)",
        source="our reading",
    )
    clip: str | None = setting(
        None,
        "the whole CLIP model that the tower is of, a folder or a name on the Hub, whose text side space clip needs",
        source="ours",
    )
    centre: Literal["both", "visual", "none"] = setting(
        "both",
        "means subtracted before any cosine: both each its own, visual that of the patches from both, none",
        source="our reading",
    )


@dataclass(frozen=True, kw_only=True)
class PromptSettings(ShareSettings, MatchSettings):
    """Of those that keep a share of the patches."""
