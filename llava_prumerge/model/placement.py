"""Where visual tokens stand: among their image's placeholders, of which what is kept gets the last, then in a pass's sequences.

A tower sees an image as one tile or several, and a tile has units: patches or blocks of them, each a visual token. A
family's own packing code, run on their numbers, says which unit each placeholder holds (line breaks, class tokens: none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava_prumerge.methods.base import Earlier
from llava_prumerge.model.errors import ModelError
from llava_prumerge.ops.layout import Calibration, TokenLayout, shift_labels


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size, as the tower saw them.

    Attributes:
        features: [N, U, C] of the units.
        grid: (rows, columns) of the units.
        projections: gives queries [N, R, C'] and keys [N, S, C'] of a block, see `methods.base.VisionTokens`.
        heads: attention heads of these blocks.
        prefix: [N, R, C] features of tokens before the patches (class token, registers), or None.
        looks: the first of these is a class token.
        left: [N, U] raster index of each unit, where not all of rows times columns are left; or None.
        boxes: [N, 4] as of `VisionTokens`, or None.
    """

    features: Tensor
    grid: tuple[int, int]
    projections: Callable[..., tuple[Tensor, Tensor]]
    heads: int
    prefix: Tensor | None = None
    looks: bool = False
    left: Tensor | None = None
    boxes: Tensor | None = None

    @property
    def class_token(self) -> Tensor | None:
        """[N, 1, C] beside the features; None where there is none, or units of several patches are wider."""
        fits = self.prefix is not None and self.looks and self.prefix.shape[2] == self.features.shape[2]
        return self.prefix[:, :1] if fits else None

    def select(self, index: Tensor) -> Tiles:
        """The same for tiles taken from these, some of them several times. [N']"""

        def projections(own: bool | Earlier = False) -> tuple[Tensor, Tensor]:
            queries, keys = self.projections(own)
            return queries[index], keys[index]

        parts = {name: getattr(self, name) for name in ("features", "prefix", "left", "boxes")}
        taken = {name: part[index] for name, part in parts.items() if part is not None}
        return replace(self, projections=projections, **taken)


@dataclass(frozen=True)
class Places:
    """Where the units of groups of tiles stand; all images' placeholders are counted through. On CPU.

    Attributes:
        lengths: placeholders of each image.
        units: for each group of tiles [N, U], the place of each unit, -1 where it was cut away.
        last: for each group [N], the place of a tile's last unit: where tokens go that stand for no unit.
        special: [M] places that hold no unit.
        by_place: tokens are sorted by place also where a tile's units stand in a row.
    """

    lengths: list[int]
    units: list[Tensor]
    last: list[Tensor]
    special: Tensor
    by_place: bool = False

    @classmethod
    def whole(cls, images: int, places: int, units: int, ahead: int = 0) -> Places:
        """Each image is one tile that fills its placeholders; or has fewer units, where a reducer shrinks the image.

        Args:
            images: N.
            places: placeholders for units of an image.
            units, ahead: units there are, and further placeholders before them, of tokens that are no units.
        """
        first = torch.arange(images)[:, None] * (places + ahead)  # [N, 1]
        begin = first + ahead
        special = (first + torch.arange(ahead)).flatten()
        return cls([places + ahead] * images, [begin + torch.arange(units)], [begin[:, 0] + places - 1], special)

    @classmethod
    def of_numbers(cls, numbers: Sequence[Tensor], counts: Sequence[tuple[int, int]]) -> Places:
        """From what each placeholder holds.

        Args:
            numbers: for each image [P], the number of the unit at each placeholder, counted through all tiles; -1: none.
            counts: for each group of tiles their number and the units of each.
        """
        flat = torch.cat(list(numbers))
        where = flat.new_full((sum(tiles * units for tiles, units in counts),), -1)
        held = flat >= 0
        where[flat[held]] = held.nonzero()[:, 0]
        groups = [
            part.view(tiles, units)
            for part, (tiles, units) in zip(where.split([t * u for t, u in counts]), counts, strict=True)
        ]
        last = [group.amax(dim=1) for group in groups]
        return cls([len(image) for image in numbers], groups, last, (~held).nonzero()[:, 0])

    @property
    def tiles(self) -> int:
        """How many there are."""
        return sum(len(group) for group in self.units)

    def owners(self) -> list[Tensor]:
        """For each group the image each of its tiles belongs to. [N]"""
        ends = torch.tensor(self.lengths).cumsum(0)
        return [torch.bucketize(last.contiguous(), ends, right=True) for last in self.last]

    def origins(self) -> Tensor:
        """The unit within its tile that each place holds, -1 for none. [P of all images]"""
        origin = torch.full((sum(self.lengths),), -1)
        for units in self.units:
            held = units >= 0
            origin[units[held]] = torch.arange(units.shape[1]).expand_as(units)[held]
        return origin


@dataclass(frozen=True)
class VisualTokens:
    """Which tokens features are, at the placeholders of their images.

    Attributes:
        lengths: placeholders of each image.
        origin: [P] the unit within its tile that each place stands for, -1 for none; all images' places in a row.
        source: [P] the place, from the image's first, that a token stands for, -1 for an empty one; None: all are there.
        kept: [N] tokens of each image.
        tiles: parts that the tower saw.
        sizes: [P] patches that each place's token stands for, where a reducer says so.
    """

    lengths: list[int]
    origin: Tensor
    source: Tensor | None
    kept: Tensor
    tiles: int
    sizes: Tensor | None = None

    @classmethod
    def unreduced(cls, lengths: list[int], origin: Tensor, tiles: int) -> VisualTokens:
        """Every placeholder has its token."""
        return cls(lengths, origin, None, torch.tensor(lengths, device=origin.device), tiles)

    def select(self, index: Sequence[int]) -> VisualTokens:
        """The same for images taken from these, some of them several times."""

        def take(part: Tensor) -> Tensor:
            of_images = part.split(self.lengths)
            return torch.cat([of_images[at] for at in index])

        source, sizes = (None if part is None else take(part) for part in (self.source, self.sizes))
        tiles = round(self.tiles * len(index) / len(self.lengths))
        lengths, origin = [self.lengths[at] for at in index], take(self.origin)
        return VisualTokens(lengths, origin, source, self.kept[list(index)], tiles, sizes)


def place(
    reduced: Sequence[tuple[Tensor, Tensor, Tensor]],
    places: Places,
    special: Tensor | None = None,
    sizes: Sequence[Tensor | None] = (),
) -> tuple[Tensor, VisualTokens]:
    """Put what reducers left at the last placeholders of each image.

    Tokens of a tile whose units stand in a row keep the reducer's order; tiles laced into each other are sorted by place.

    Args:
        reduced: for each group of tiles features [N, K, D], valid [N, K] and origin [N, K].
        places: of these.
        special: [M, D] features at the places that hold no unit; they always stay.
        sizes: of each group [N, K], patches that tokens stand for, where a reducer says so.

    Returns:
        [P, D] features of all images' placeholders in a row, zero at places that are left empty, and what they are.

    Raises:
        ModelError: a tile keeps more tokens than it has units.
    """
    device = reduced[0][0].device
    entries = []  # (sort key, place, unit, gone, size, features) of all tokens
    known = [size for size in sizes if size is not None]
    sizes = sizes if known else [valid for _, valid, _ in reduced]
    for (feature, valid, origin), units, last, size in zip(reduced, places.units, places.last, sizes, strict=True):
        kept, count = feature.shape[1], units.shape[1]
        in_a_row = bool((units == units[:, :1] + torch.arange(count)).all()) and bool((units >= 0).all())
        room = int((last - units[:, 0]).amin()) + 1 if in_a_row else count
        if kept > room:
            raise ModelError(f"an image keeps {kept} tokens but has {room} placeholders")
        units, last = units.to(device), last.to(device)
        stand = torch.where(origin < 0, last[:, None], units.gather(1, origin.clamp(0, count - 1)))  # [N, K]
        key, there = 2 * stand + (origin < 0), (units >= 0).sum(dim=1, keepdim=True)
        if in_a_row and not places.by_place:
            key, there = 2 * (units[:, :1] + torch.arange(kept, device=device)).expand_as(stand), there + room - count
        standing = valid & (stand >= 0)  # of a tile that is cut no more than it has places
        entry = (key, stand, origin, ~standing | (standing.cumsum(dim=1) > there), size.float(), feature)
        entries.append(tuple(value.flatten(0, 1) for value in entry))
    if special is not None and len(special):
        at = places.special.to(device)
        entries.append((2 * at, at, torch.full_like(at, -1), at < 0, at * 0.0 + 1, special))
    tokens = (torch.cat(values) for values in zip(*entries, strict=True))
    features, source, origin, kept, size = _laid_out(*tokens, places.lengths)
    return features, VisualTokens(places.lengths, origin, source, kept, places.tiles, size if known else None)


def _laid_out(
    key: Tensor, stand: Tensor, origin: Tensor, gone: Tensor, size: Tensor, features: Tensor, lengths: list[int]
) -> tuple[Tensor, ...]:
    """Tokens [E] with sort keys: sorted, and pushed to the end of each image's places: features, source, origin, kept, size.

    Costs no host synchronisation.
    """
    total, counts = sum(lengths), torch.tensor(lengths, device=key.device)
    ends = counts.cumsum(0)
    begins = ends - counts
    order = torch.where(gone, 2 * total + 2, key).argsort(stable=True)
    stand, origin, gone, size, features = (value[order] for value in (stand, origin, gone, size, features))
    image = torch.bucketize(stand.clamp(min=0), ends, right=True)
    kept = torch.zeros_like(ends).index_add(0, image, (~gone).long())  # [N]
    rank = torch.arange(len(stand), device=key.device) - (kept.cumsum(0) - kept)[image]
    target = torch.where(gone, total, (ends - kept)[image] + rank)  # what is gone goes to a place that is cut off
    laid = features.new_zeros(total + 1, features.shape[1]).index_copy(0, target, features)[:total]
    source, unit = (torch.full((total + 1,), -1, device=key.device) for _ in range(2))
    source[target], unit[target] = stand - begins[image], origin
    sizes = size.new_ones(total + 1).index_copy(0, target, size)[:total]
    return laid, source[:total], unit[:total], kept, sizes


@dataclass
class ForwardPass:
    """Rides through the stock `forward`s in their keyword arguments.

    Attributes:
        labels: [B, L] as the caller gave them.
        is_image: [B, L] bool, a visual placeholder.
        source: [B, L] the column whose position a token takes, -1 where a reducer left a placeholder empty; None where no
            reducer acted.
        origin: [B, L] raster index of the unit a visual token stands for, within its tile; -1 for none.
        images, kept: [B] images of each sequence, and [N] tokens that each image leaves the reducer with.
        tiles, full: parts the tower saw all images in, and placeholders of all images.
        blocks: [B, L] the block of tokens that all see each other, -1 for none; None in causal models.
        blocks_pass_windows: they do so across the windows of layers too.
        carries_mask, attention_mask: the latter [B, keys] is the caller's, of whose own the stock code has made a mask.
        positions: what a reducer says of positions: "contiguous" or "original".
        sizes, calibration: [B, L] patches that each token stands for, and of distances: see `model.key_bias`; or None.
        reduces: a method acts in this pass; False where it only carries `touch`.
        touch: zero, by way of vision modules that have nothing else to do in this pass.
        rewrite: embeddings [B, L, D] and their layout -> what takes their place before the first layer; or None.
        turns: [B, L], see `TokenLayout`; or None.
        layout, visual: the final one, and [B, layers] visual tokens that each layer saw; both told by the decoder.
    """

    labels: Tensor | None = None
    is_image: Tensor | None = None
    source: Tensor | None = None
    origin: Tensor | None = None
    images: Tensor | None = None
    kept: Tensor | None = None
    tiles: int = 0
    full: int = 0
    blocks: Tensor | None = None
    blocks_pass_windows: bool = False
    carries_mask: bool = False
    attention_mask: Tensor | None = None
    positions: str = "contiguous"
    sizes: Tensor | None = None
    calibration: Calibration | None = None
    reduces: bool = True
    touch: Tensor | None = None
    rewrite: Callable[[Tensor, TokenLayout], Tensor] | None = None
    turns: Tensor | None = None
    layout: TokenLayout | None = None
    visual: Tensor | None = None

    def see(self, visual: VisualTokens, spots: Tensor, modality: str, group: Callable[..., Tensor | None]) -> None:
        """Say where visual tokens stand in the sequences. Costs a host synchronisation.

        Args:
            visual: the tokens, of all images.
            spots: [B, L] bool, the modality's placeholders.
            modality: "image" or "video".
            group: see `model.host.Host.group`.

        Raises:
            ModelError: there are more or fewer placeholders than the images have tokens.
        """
        rows, columns = spots.nonzero(as_tuple=True)
        if len(rows) != (wanted := sum(visual.lengths)):
            each = f"{visual.lengths[0]} tokens each" if len(set(visual.lengths)) == 1 else f"{wanted} tokens"
            images = f"{len(visual.lengths)} {modality}s"
            raise ModelError(f"{len(rows)} {modality} placeholders do not match {images} of {each}")
        lengths = torch.tensor(visual.lengths, device=rows.device)
        first = lengths.cumsum(0) - lengths
        images = rows.new_zeros(len(spots)) if self.images is None else self.images
        owner = group((rows[first], columns[first]))
        begins = torch.ones_like(first) if owner is None else torch.diff(owner, prepend=owner.new_full((1,), -1))
        self.images = images.index_add(0, rows[first], begins)
        origin = torch.full_like(spots, -1, dtype=torch.long) if self.origin is None else self.origin
        self.origin = origin.masked_scatter(spots, visual.origin.to(rows.device))
        if visual.source is not None:
            if self.source is None:
                self.source = torch.arange(spots.shape[1], device=rows.device).expand_as(spots)
            begin = torch.repeat_interleave(first, lengths, output_size=len(rows))
            source = visual.source.to(rows.device)
            column = columns[begin + source.clamp(min=0)].masked_fill(source < 0, -1)
            self.source = self.source.masked_scatter(spots, column)
        if visual.sizes is not None:
            sizes = torch.ones_like(spots, dtype=torch.float32) if self.sizes is None else self.sizes
            self.sizes = sizes.masked_scatter(spots, visual.sizes.to(rows.device))
        kept = visual.kept.to(rows.device)
        if owner is not None:
            kept = kept.new_zeros(int(owner[-1]) + 1).index_add(0, owner, kept)
        self.kept = kept if self.kept is None else torch.cat([self.kept, kept])
        self.tiles, self.full = self.tiles + visual.tiles, self.full + len(rows)

    def begin(self, key_mask: Tensor, start: Tensor | int) -> TokenLayout:
        """The layout of the tokens passed in, unreduced, each at its position.

        Args:
            key_mask: [B, L] bool.
            start: position of the first token, [B, 1] or a number.
        """
        blank, length = torch.zeros_like(key_mask), key_mask.shape[1]
        layout = TokenLayout(
            is_image=blank if self.is_image is None else self.is_image & key_mask,
            key_mask=key_mask,
            position_ids=torch.zeros_like(key_mask, dtype=torch.long),
            origin=torch.full_like(key_mask, -1, dtype=torch.long) if self.origin is None else self.origin,
            shift_labels=None if self.labels is None else shift_labels(self.labels),
            images=key_mask.new_zeros(len(key_mask), dtype=torch.long) if self.images is None else self.images,
            columns=torch.arange(length, device=key_mask.device).expand_as(key_mask),
            key_weight=self.sizes,
            turns=self.turns,
        )
        layout = layout.renumbered(start)
        if self.source is None or self.positions != "original":
            return layout
        return replace(layout, position_ids=layout.position_ids.gather(1, self.source.clamp(min=0)))
