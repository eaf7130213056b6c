"""The vision side of a model: a family's `get_image_features` and `get_video_features` reduce, and the stock `forward` does the rest.

They return features of full length, zero at the places that a reducer left empty, and say which places those are. The stock
code puts them at the placeholders, makes positions and calls the language model, which drops what is empty
(`model/decoder.py`). So processors, prompts and position code need not know of methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.model.asked_text import AskedText
from llava_prumerge.model.decoder import InitialisesMethods
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.handover import ARGUMENT, ReducedFeatures, handed_over, takes_features
from llava_prumerge.model.padding import padded_patches
from llava_prumerge.model.placement import ForwardPass, Places, Tiles, VisualTokens, place
from llava_prumerge.model.prefusion import by_image, rewriting
from llava_prumerge.model.statistics import ReductionStatistics
from llava_prumerge.model.stretch import ReducedCache, holds_stock_keys
from llava_prumerge.model.touching import MODALITIES, calls_of_all_ranks, left_out, touch
from llava_prumerge.model.views import Views
from llava_prumerge.model.vision_tower import image_ids, prepare
from llava_prumerge.ops.layout import scatter_back


class Host(AskedText, Views, InitialisesMethods):
    """Goes in front of a stock model without head; a family adds what its features are made of.

    Attributes:
        reducer: the `VisionReducer`, or None.
        statistics: what was reduced since the last reading.
        full_length: states come back at the caller's length, see `model.whole.WithReduction`.
        decoder_name: where the language model is.
        tower_names: where the vision towers are, which no stage trains.
        projector_names: where what stands between tower and language model is, which every stage trains.
        own_arguments: what its `get_..._features` take beyond the stock arguments.
        takes_features: the stock `forward` takes features that are already made, see `model.handover`.
        caches_tower: what the vision tower makes of an image can be kept on disk, see `model.tower_cache`.
        overview: which tile of an image shows all of it, where it is cut into several: the "first" or the "last".
        old_stock_packs_videos: the stock `forward` of transformers 5.17 does with features of videos what today's does.
    """

    reducer: VisionReducer | None
    statistics: ReductionStatistics
    full_length: bool
    decoder_name = "language_model"
    tower_names: tuple[str, ...] = ("vision_tower",)
    projector_names: tuple[str, ...] = ("multi_modal_projector", "image_newline")
    own_arguments: tuple[str, ...] = ()
    takes_features = True
    caches_tower = False
    overview: str = "first"
    old_stock_packs_videos = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.takes_features = takes_features(cls, Host)

    # ------------------------------------------------------------------ what a family may say

    def blank(self) -> dict[str, dict[str, Any]]:
        """For each modality the least input that reaches all of its modules, for training batches without one."""
        size = self.config.vision_config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(self.config.vision_config, "num_channels", 3)
        return {
            "image": {"pixel_values": torch.zeros(1, channels, height, width, dtype=self.dtype, device=self.device)}
        }

    def group(self, input_ids: Tensor, first: tuple[Tensor, Tensor]) -> Tensor | None:
        """Which image of the user each part belongs to whose places are told apart, counted from 0; None: each is one.

        Args:
            input_ids: [B, L].
            first: rows and columns of the first placeholder of each part.
        """
        return None

    def hand_over(self, kwargs: dict[str, Any], told: ForwardPass) -> None:
        """Take from the stock code what it would make masks of that a reduction changes, and tell the decoder instead."""

    def carry_mask(self, kwargs: dict[str, Any], told: ForwardPass, stands: Any) -> None:
        """Let the decoder have the attention mask; the stock code gets what it hands on as it is."""
        told.carries_mask, told.attention_mask = True, kwargs.get("attention_mask")
        kwargs["attention_mask"] = stands

    def whole(self, output: Any) -> VisualTokens:
        """What stock features stand for, where no reducer acts and nobody has told: each image is one tile."""
        lengths = [len(image) for image in output.pooler_output]
        origin = torch.cat([torch.arange(length) for length in lengths])
        return VisualTokens.unreduced(lengths, origin.to(output.pooler_output[0].device), len(lengths))

    def tell(self, output: Any, places: Callable[[], Places]) -> Any:
        """Stock features [P, D] of each image, and what they stand for. -> the same output"""
        if not torch.compiler.is_compiling():  # nobody counts in compiled code
            laid, device = places(), output.pooler_output[0].device
            output.visual_tokens = VisualTokens.unreduced(laid.lengths, laid.origins().to(device), laid.tiles)
        return output

    # ------------------------------------------------------------------ the forward pass

    @property
    def decoder(self) -> Any:
        """The language model."""
        return getattr(self, self.decoder_name)

    def use(self, reducer: VisionReducer | None) -> None:
        """Put a reducer in the place of the one that is there; the towers keep what it asks about."""
        for name in self.tower_names:
            prepare(getattr(self, name), reducer)
        self.reducer = reducer

    @property
    def reduces(self) -> bool:
        """Whether a method is there."""
        return self.reducer is not None or self.decoder.pruner is not None

    def forward(self, *args: Any, forward_pass: ForwardPass | None = None, **kwargs: Any) -> Any:
        """The stock `forward`. With a method the output has `layout`, the final one, and `visual` [B, layers]."""
        if args:
            names = list(inspect.signature(super().forward).parameters)
            kwargs |= dict(zip(names, args, strict=False))
        told = forward_pass or ForwardPass(labels=kwargs.pop("labels", None))
        input_ids = kwargs.get("input_ids")
        with self.asking(input_ids, kwargs.get("attention_mask"), told.labels):
            features, read, told.touch = self._encode(kwargs)
        if features:
            kwargs |= {ARGUMENT: features} if self.takes_features else read
        counts = features and not torch.compiler.is_compiling()  # what reads values on the host breaks a graph
        if features and (self.reduces or counts):
            self._describe(told, input_ids, features)
        cache = kwargs.get("past_key_values")
        told.reduces = (self.reduces or told.turns is not None) and (bool(features) or not holds_stock_keys(cache))
        if told.reduces and self.reducer is not None and isinstance(cache, ReducedCache) and _many(kwargs):
            cache.check_turn(self.reducer, cache.reduced, bool(features))
        if told.reduces or told.touch is not None:
            kwargs["forward_pass"] = told
        mask = kwargs.get("attention_mask")
        if told.reduces:
            self.hand_over(kwargs, told)
        with nullcontext() if self.takes_features or not features else handed_over(self, features):
            output = super().forward(**kwargs)
        if told.kept is not None and counts:
            self._count(told, mask)
        if not isinstance(output, tuple):
            if self.full_length and told.reduces and told.layout.columns is not None:
                given = input_ids if input_ids is not None else kwargs["inputs_embeds"]
                output.last_hidden_state = scatter_back(output.last_hidden_state, told.layout, given.shape[1])
            output.layout, output.visual = told.layout, told.visual
        return output

    def _encode(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Tensor | None]:
        """Features by modality; what they are made of, which leaves the arguments; and zero by way of what was left out."""
        features = dict(kwargs.pop(ARGUMENT, None) or {})
        features = {name: output for name, output in features.items() if output is not None}
        if features and not self.takes_features:
            raise ModelError(f"{ARGUMENT} needs transformers 5.18 or later; give pixel_values")
        if kwargs.get("input_ids") is None:
            if self.reduces and any(kwargs.get(name) is not None for name in MODALITIES.values()):
                raise ModelError("pixel_values need input_ids: placeholders cannot be told from embeddings")
            return features, {}, None
        shared: set[str] = set()
        here = {name for name, pixels in MODALITIES.items() if kwargs.get(pixels) is not None and len(kwargs[pixels])}
        touched = left_out(self, {*here, *features}) if self.training else set()
        total: Tensor | None = None
        for modality, pixels in MODALITIES.items():
            if modality in touched:
                part = self._touch(modality)
                total = part if total is None else total + part
            if modality not in here:
                continue
            get = getattr(self, f"get_{modality}_features")
            accepted = set(inspect.signature(get).parameters) & set(kwargs)
            if modality == "video" and not (self.takes_features or self.old_stock_packs_videos):
                raise ModelError(f"videos of {self.config.model_type} need transformers 5.18 or later")
            if modality in features:
                raise ModelError(f"give {pixels} or features of them, not both")
            features[modality] = get(return_dict=True, **{name: kwargs[name] for name in accepted})
            shared |= accepted & {pixels, *self.own_arguments}
        if self.training and "image" not in {*features, *touched} and hasattr(self, "image_newline"):
            part = 0.0 * self.image_newline.sum()  # of videos alone: ranks with images give it a gradient
            total = part if total is None else total + part
        return features, {name: kwargs.pop(name) for name in shared}, total

    def _describe(self, told: ForwardPass, input_ids: Tensor | None, features: dict[str, Any]) -> None:
        """Say where the features stand in the sequences. Costs a host synchronisation for each modality."""
        if input_ids is None:
            return
        told.is_image = self.placeholders(input_ids)
        if self.reducer is not None:
            told.positions, told.calibration = self.reducer.positions, self.reducer.calibration
            if hasattr(self.decoder.rotary_emb, "mrope_section"):
                told.positions = "original"  # positions in three parts are places in the image
        told_of = []
        for modality, output in features.items():
            visual = self._visual(output)
            spots = input_ids == getattr(self.config, f"{modality}_token_id")
            told_of.append((output, spots))
            told.see(visual, spots, modality, lambda first: self.group(input_ids, first))
        if self.reducer is not None and self.reducer.rewrites:
            told.rewrite = rewriting(self.reducer, told_of, len(input_ids))

    def _visual(self, output: Any) -> VisualTokens:
        visual = getattr(output, "visual_tokens", None)
        if visual is not None:
            return visual
        if self.reducer is not None:
            raise ModelError(
                f"{self.reducer.name} needs the vision tower: it cannot act on features that are given, nor in a prefill "
                "that is cut into chunks"
            )
        return self.whole(output)

    def placeholders(self, input_ids: Tensor) -> Tensor:
        """Which tokens are placeholders of images or frames. [B, L] bool"""
        tokens = [getattr(self.config, f"{modality}_token_id", None) for modality in MODALITIES]
        return torch.stack([input_ids == token for token in tokens if token is not None]).any(dim=0)

    def _count(self, told: ForwardPass, attention_mask: Any) -> None:
        """What a pass with images has done, into the statistics."""
        if told.layout is None:  # the stock forward ran: all layers saw everything
            plain = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
            key_mask = attention_mask[:, -told.is_image.shape[1] :].bool() if plain else torch.ones_like(told.is_image)
            told.layout = told.begin(key_mask, 0)
            counts = told.layout.is_image.sum(dim=1)
            told.visual = counts[:, None].expand(-1, self.config.get_text_config().num_hidden_layers)
        self.statistics.add(told.kept, told.layout.key_mask, told.visual, told.images, told.tiles, told.full)

    def _touch(self, modality: str) -> Tensor:
        """See `touch`; what is asked of a blank image is the text of the batch, answers included."""
        with self.asking(self._asked.input_ids, self._asked.attention_mask):
            zero = touch(self, modality)
        if self.reducer is not None:
            self.reducer.forget()
        return zero

    # ------------------------------------------------------------------ what families call

    def reduce(
        self,
        tiles: Sequence[Tiles],
        places: Places,
        project: Callable[[Tensor], Tensor],
        pixels: Callable[[int], Tensor],
        special: Tensor | None = None,
        modality: str = "image",
        stacked: int | None = None,
    ) -> Any:
        """Reduce groups of tiles, project what is left, and put it at its places. -> `ReducedFeatures`

        Modules are called once for all groups: under ZeRO-3 ranks must make the same calls, whatever images they have.

        Args:
            tiles: of each size a group.
            places: of their units.
            project: [..., C] -> [..., D].
            pixels: number of a group -> what each of its tiles was made of [N, ...].
            special: [M, D] features at the places that hold no unit.
            modality: of the placeholders.
            stacked: the stock code wants features [tiles, so many, D]; None: those of each image.
        """
        early, bare = self.reducer.site == "projected", [group.features for group in tiles]
        if early:
            features = together(project, bare)
            tiles = [replace(group, features=part) for group, part in zip(tiles, features, strict=True)]
        elif self.reducer.reads_projected:
            with torch.no_grad():
                features = together(project, bare)
        owners, reduced, sizes = places.owners(), [], []
        learns = any(True for _ in self.reducer.parameters())
        calls = calls_of_all_ranks(self.reducer, len(tiles))
        whole = by_image(together(project, bare), owners, len(places.lengths)) if self.reducer.rewrites else None
        for number, group in enumerate(tiles):
            image = VisionTokens(
                group.features,
                group.grid,
                group.projections,
                group.heads,
                lambda number=number: self.prompts(owners[number], places.lengths, modality),
                image_ids(pixels(number)) if self.reducer.needs_ids else None,
                class_token=None if early else group.class_token,
                unprojected=bare[number] if early else None,
                left=group.left,
                projected=features[number] if self.reducer.reads_projected and not early else None,
                boxes=group.boxes,
                padding=lambda number=number: padded_patches(pixels(number), tiles[number].grid),
                question=self.question(owners[number], places.lengths, modality),
                clip=self.clip_side(bare[number], owners[number], places.lengths, modality),
                overview=overviews(owners[number], self.overview if modality == "image" else None, group.features),
            )
            reduced.append(self.reducer(image) if learns else self.reducer.directly(image))
            sizes.append(image.sizes)
        further = [0.0 * self.reducer(image)[0].sum() for _ in range(calls - len(tiles))]
        if not early:
            features = together(project, [part for part, _, _ in reduced])
            reduced = [(part, *rest) for part, (_, *rest) in zip(features, reduced, strict=True)]
        features, visual_tokens = place(reduced, places, special, sizes)
        for zero in further:
            features = features + zero
        pooled = list(features.split(places.lengths)) if stacked is None else features.unflatten(0, (-1, stacked))
        return ReducedFeatures(pooler_output=pooled, visual_tokens=visual_tokens, whole=whole)


def _many(kwargs: dict[str, Any]) -> bool:
    """Whether more than a decoding step's single token is passed in."""
    given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    return given is not None and given.shape[1] > 1


def together(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """One call of a function of rows for several tensors [N, K, C]: ranks must make the same calls, whatever images they have."""
    if len(parts) == 1:
        return [function(parts[0])]
    sizes = [part.shape[:2] for part in parts]
    whole = function(torch.cat([part.flatten(0, 1) for part in parts]))
    split = whole.split([rows * columns for rows, columns in sizes])
    return [part.unflatten(0, size) for part, size in zip(split, sizes, strict=True)]


def in_dtype_of(module: nn.Module, features: Tensor) -> Tensor:
    """Features in the dtype of a module's weights; quantised weights, which are integers, take whatever they are given."""
    weight = next(module.parameters())
    return features.to(weight.dtype) if weight.is_floating_point() else features


def overviews(owners: Tensor, where: str | None, features: Tensor) -> Tensor | None:
    """For each tile of a group the one that shows its whole image, see `VisionTokens.overview`.

    Args:
        owners: [N] the image each tile belongs to, rising, on CPU.
        where: the "first" tile of an image shows all of it, or the "last"; None: each is a frame of a video.
        features: of the group.

    Returns:
        [N] int64 beside the features; None where every tile is an image.
    """
    if where is None:
        return None
    last = where == "last"
    shows = torch.searchsorted(owners, owners, right=last) - int(last)
    return None if bool((shows == torch.arange(len(owners))).all()) else shows.to(features.device)
