"""Watches one run of a model: how long each part of it takes, and what its methods keep of each image.

For the time of the run `get_image_features`, `get_video_features` and the `forward` of reducer, projector, pruner and head are wrapped; then the
model is as it was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.inference.merging import merge_weights
from llava_prumerge.methods.base import DecoderTokens, VisionTokens
from llava_prumerge.methods.contract import left_of
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.host import MODALITIES

STAGES = ("tower", "reducer", "projector", "prefill", "decode")
_PROJECTORS = ("multi_modal_projector", "projector", "connector")


@dataclass
class Tile:
    """A part of an image that the tower saw by itself.

    Attributes:
        grid: (rows, columns) of its units: patches, or the blocks of patches that become one token.
        pixels: [3, h, w] as the tower saw them, colours normalised; None where they were not asked for or are no picture.
        attention: [rows, columns] that each unit receives from the class token (from all patches where the tower has
            none), as the method reads it; None where it was not asked for.
        made: the unit that each token of the tile stands for, -1 for several or none, in the order the reducer gave them.
        weights: [tokens, units] of each unit in each of these tokens; None where it was not asked for, or where tokens
            are no weighted sums of units.
    """

    grid: tuple[int, int]
    pixels: Tensor | None = None
    attention: Tensor | None = None
    made: tuple[int, ...] = ()
    weights: Tensor | None = None


Token = tuple[int, int]
"""A visual token: the tile of its image, and the unit in it that the token stands for; -1 for several units, or none."""


@dataclass
class Watched:
    """What was seen of one run.

    Attributes:
        seconds: of each of STAGES; together they are the whole run.
        full: for each image its visual tokens without a method.
        tiles: for each image the parts that the tower saw; none where neither a reducer nor a picture looked at them.
        kept: for each image the tokens that reached the decoder.
        pruned: the same after each layer before which a pruner acted.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    full: list[int] = field(default_factory=list)
    tiles: list[list[Tile]] = field(default_factory=list)
    kept: list[list[Token]] = field(default_factory=list)
    pruned: dict[int, list[list[Token]]] = field(default_factory=dict)

    def join(self, owners: Sequence[int]) -> None:
        """Make one image of parts that belong together, their tiles counted through.

        Args:
            owners: the image that each part belongs to, from 0 on.
        """
        images, before = max(owners, default=-1) + 1, []
        full = [0] * images
        tiles: list[list[Tile]] = [[] for _ in range(images)]
        for at, owner in enumerate(owners):
            before.append(len(tiles[owner]))
            full[owner] += self.full[at]
            tiles[owner] += self.tiles[at] or [Tile((1, self.full[at]))]

        def joined(tokens: Sequence[Sequence[Token]]) -> list[list[Token]]:
            made: list[list[Token]] = [[] for _ in range(images)]
            for owner, shift, part in zip(owners, before, tokens, strict=True):
                made[owner] += [(tile + shift, unit) for tile, unit in part]
            return made

        self.full, self.tiles, self.kept = full, tiles, joined(self.kept)
        self.pruned = {layer: joined(tokens) for layer, tokens in self.pruned.items()}


@contextmanager
def watching(model: Any, attention: bool = False, pictures: bool = False, merges: bool = False) -> Iterator[Watched]:
    """Watch what happens within the block: one forward pass, or one call of `generate` without beams.

    Args:
        model: of `load_model`, or one that `attach` was called on.
        attention: note the attention that patches receive, too.
        pictures: and the tiles that the tower saw.
        merges: and the weights of patches in tokens, for which the reducer runs once more.
    """
    watched = Watched()
    with ExitStack() as stack:
        watch = _Watch(model, watched, (attention, pictures, merges), stack)
        begun = watch.now()
        yield watched
        watch.finish(begun)


class _Watch:
    """What is wrapped during one run, until its stack is closed."""

    def __init__(self, model: Any, watched: Watched, wanted: tuple[bool, bool, bool], stack: ExitStack) -> None:
        self.watched, self.host, self.device = watched, model.model, model.device
        self.wants_attention, self.wants_pictures, self.wants_merges = wanted
        self.stack = stack
        self.vision, self.looked = 0.0, 0.0
        self.first_token: float | None = None
        self.input_ids: Tensor | None = None
        self.tile_of: list[Tensor] = []  # for each image the tile of the token at each of its places
        self.looks: list[Tensor] = []
        self.merges: list[tuple[Tensor | None, Tensor, Tensor]] = []  # weights, valid, origin of a group of tiles
        host = self.host
        self.lent = host.reducer is None and any(wanted)
        if self.lent:  # what keeps everything shows what there is
            host.reducer = build_reducer({"name": "none"})
            stack.callback(setattr, host, "reducer", None)
        for modality in MODALITIES:
            if hasattr(host, f"get_{modality}_features"):
                self._wrap(host, f"get_{modality}_features", self._encode)
        self._wrap(host, "reduce", self._cut)
        self._wrap(host, "forward", self._begin)
        self._wrap(model.get_output_embeddings(), "forward", self._speak)
        self._wrap(host.reducer, "forward", self._reduce)
        self._wrap(host.decoder.pruner, "forward", self._prune)
        projector = next((getattr(host, name) for name in _PROJECTORS if hasattr(host, name)), None)
        self._wrap(projector, "forward", self._project)

    def now(self) -> float:
        """The time, once all is done that was asked of a GPU before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def finish(self, begun: float) -> None:
        """Say how long the parts took."""
        seconds, end = self.watched.seconds, self.now()
        spoke = end if self.first_token is None else self.first_token
        seconds["tower"] = self.vision - seconds["reducer"] - seconds["projector"]
        seconds["prefill"] = spoke - begun - self.vision - self.looked
        seconds["decode"] = end - spoke
        spans = self._spans()
        if spans and self.input_ids is not None:
            rows, columns = (torch.tensor(part) for part in list(zip(*spans, strict=True))[:2])
            owners = self.host.group(self.input_ids.cpu(), (rows, columns))
            if owners is not None:
                self.watched.join(owners.tolist())

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Call `around(original, *args, **kwargs)` in the place of a method, whose signature stays readable."""
        if owner is None:
            return
        before = vars(owner).get(name)
        original = getattr(owner, name)
        setattr(owner, name, functools.wraps(original)(functools.partial(around, original)))
        self.stack.callback(delattr if before is None else functools.partial(_put_back, before), owner, name)

    # ------------------------------------------------------------------ what is wrapped

    def _begin(self, forward: Callable[..., Any], *args: Any, **given: Any) -> Any:
        ids = given.get("input_ids", args[0] if args else None)
        if self.input_ids is None and ids is not None:
            self.input_ids = ids
        return forward(*args, **given)

    def _encode(self, encode: Callable[..., Any], *args: Any, **given: Any) -> Any:
        begun, before = self.now(), self.looked
        output = encode(*args, **given)
        self.vision += self.now() - begun - (self.looked - before)
        visual = getattr(output, "visual_tokens", None) or self.host.whole(output)
        if len(self.tile_of) == len(self.watched.full):  # nobody has cut these images
            self.tile_of += [torch.zeros(length, dtype=torch.long) for length in visual.lengths]
            self.watched.tiles += [[] for _ in visual.lengths]
        sources = [None] * len(visual.lengths) if visual.source is None else visual.source.cpu().split(visual.lengths)
        for origin, source in zip(visual.origin.cpu().split(visual.lengths), sources, strict=True):
            there = torch.ones_like(origin, dtype=torch.bool) if source is None else source >= 0
            at = len(self.watched.full)
            if source is not None:
                self.tile_of[at] = self.tile_of[at][source.clamp(min=0)]
            self.watched.kept.append(list(zip(self.tile_of[at][there].tolist(), origin[there].tolist(), strict=True)))
            self.watched.full.append(len(origin))
        return output

    def _cut(
        self, reduce: Callable[..., Any], tiles: Any, places: Any, project: Any, pixels: Any, *args: Any, **given: Any
    ) -> Any:
        """Note how images were cut, and what became of each tile."""
        self.looks, self.merges = [], []
        output = reduce(tiles, places, project, pixels, *args, **given)
        begun = self.now()
        parts: list[list[Tile]] = [[] for _ in places.lengths]
        for number, (group, owners) in enumerate(zip(tiles, places.owners(), strict=True)):
            seen = pixels(number) if self.wants_pictures else None
            for at, owner in enumerate(owners.tolist()):
                tile = Tile(group.grid)
                if seen is not None:
                    picture = self.host.picture(seen[at], group.grid)
                    tile.pixels = None if picture is None else picture.detach().float().cpu()
                if self.looks:
                    tile.attention = self.looks[number][at].view(group.grid)
                if self.merges:
                    weights, valid, origin = self.merges[number]
                    tile.made = tuple(origin[at][valid[at]].tolist())
                    tile.weights = None if weights is None else weights[at][valid[at]]
                parts[owner].append(tile)
        self.watched.tiles += parts
        numbers = _tile_numbers(places) if len(tiles) > 1 or max(map(len, parts), default=0) > 1 else None
        zeros = torch.zeros(sum(places.lengths), dtype=torch.long)
        self.tile_of += (zeros if numbers is None else numbers).split(places.lengths)
        if (
            self.wants_attention or self.wants_pictures or self.wants_merges
        ):  # else too little to be worth a time of its own
            self.looked += self.now() - begun
        return output

    def _reduce(self, reduce: Callable[..., Any], tokens: VisionTokens, *args: Any, **given: Any) -> Any:
        if self.wants_attention:
            begun = self.now()
            self.looks.append(self.host.reducer.attention(tokens).detach().float().cpu())
            self.looked += self.now() - begun
        if self.wants_merges and not self.lent:
            begun = self.now()
            weights, (_, valid, origin) = merge_weights(functools.partial(self._placed, reduce), tokens)
            self.merges.append((weights, valid, origin))
            self.looked += self.now() - begun
        if self.lent:
            return reduce(tokens, *args, **given)
        return self._timed("reducer", reduce, tokens, *args, **given)

    def _placed(self, reduce: Callable[..., Any], tokens: VisionTokens) -> Any:
        return self.host.reducer.placed(reduce(tokens), tokens.features.shape[1])

    def _project(self, project: Callable[..., Any], *args: Any, **given: Any) -> Any:
        return self._timed("projector", project, *args, **given)

    def _prune(self, prune: Callable[..., Any], layer: int, tokens: DecoderTokens) -> Any:
        keep = prune(layer, tokens)
        columns = tokens.layout.columns
        if columns is None or (keep is None and layer == 0):  # a loop of somebody else's; a look at the embeddings
            return keep
        layout, stays = left_of(keep, tokens.layout)
        stays = stays & layout.is_image
        self.watched.pruned[layer] = []
        for (row, first, last), tiles in zip(self._spans(), self.tile_of, strict=False):
            here = stays[row] & (columns[row] >= first) & (columns[row] <= last)
            units, places = layout.origin[row][here].tolist(), (columns[row][here] - first).cpu()
            self.watched.pruned[layer].append(list(zip(tiles[places].tolist(), units, strict=True)))
        return keep

    def _speak(self, speak: Callable[..., Any], *args: Any, **given: Any) -> Any:
        output = speak(*args, **given)
        if self.first_token is None:
            self.first_token = self.now()
        return output

    # ------------------------------------------------------------------ helpers

    def _timed(self, stage: str, work: Callable[..., Any], *args: Any, **given: Any) -> Any:
        begun = self.now()
        output = work(*args, **given)
        self.watched.seconds[stage] += self.now() - begun
        return output

    def _spans(self) -> list[tuple[int, int, int]]:
        """For each image its row, and the first and last column of its placeholders."""
        if self.input_ids is None:
            return []
        rows, columns = self.host.placeholders(self.input_ids).nonzero(as_tuple=True)
        spans, begin = [], 0
        for length in self.watched.full:
            end = begin + length
            spans.append((int(rows[begin]), int(columns[begin]), int(columns[end - 1])))
            begin = end
        return spans


def _tile_numbers(places: Any) -> Tensor:
    """The tile of its image, counted from 0, that each of `model.placement.Places` holds a unit of; -1 for none. [P]"""
    numbers, seen = torch.full((sum(places.lengths),), -1), [0] * len(places.lengths)
    for units, owners in zip(places.units, places.owners(), strict=True):
        for row, owner in zip(units, owners.tolist(), strict=True):
            numbers[row[row >= 0]] = seen[owner]
            seen[owner] += 1
    return numbers


def _put_back(before: Any, owner: Any, name: str) -> None:
    setattr(owner, name, before)
