"""Where visual tokens stand among an image's placeholders: what is kept goes to the last of them, in order.

A tower sees an image as one tile or several; a tile has units, the tokens that the language model gets of it (patches, or
blocks of patches). A family's own packing code, run on the numbers of units in place of their features, says which unit each
placeholder holds, and which placeholders hold none (line breaks, class tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size, as the tower saw them.

    Attributes:
        features: [N, U, C] of the units.
        grid: (rows, columns) of the units.
        projections: gives queries [N, R, C'] and keys [N, S, C'] of the next block, or with own=True of the block that
            made the features (see `methods.base.VisionTokens`).
        heads: attention heads of these blocks.
        prefix: [N, R, C] features of tokens before the patches (class token, registers), or None.
        looks: the first of these is a class token.
    """

    features: Tensor
    grid: tuple[int, int]
    projections: Callable[..., tuple[Tensor, Tensor]]
    heads: int
    prefix: Tensor | None = None
    looks: bool = False

    @property
    def class_token(self) -> Tensor | None:
        """[N, 1, C] beside the features; None where there is none, or units of several patches are wider."""
        fits = self.prefix is not None and self.looks and self.prefix.shape[2] == self.features.shape[2]
        return self.prefix[:, :1] if fits else None

    def select(self, index: Tensor) -> Tiles:
        """The same for tiles taken from these, some of them several times. [N']"""

        def projections(own: bool = False) -> tuple[Tensor, Tensor]:
            queries, keys = self.projections(own)
            return queries[index], keys[index]

        prefix = None if self.prefix is None else self.prefix[index]
        return replace(self, features=self.features[index], projections=projections, prefix=prefix)


@dataclass(frozen=True)
class Places:
    """Where the units of groups of tiles stand; all images' placeholders are counted through. On CPU.

    Attributes:
        lengths: placeholders of each image.
        units: for each group of tiles [N, U], the place of each unit, -1 where it was cut away.
        last: for each group [N], the place of a tile's last unit: where tokens go that stand for no unit.
        special: [M] places that hold no unit.
    """

    lengths: list[int]
    units: list[Tensor]
    last: list[Tensor]
    special: Tensor

    @classmethod
    def whole(cls, images: int, places: int, units: int, ahead: int = 0) -> Places:
        """Each image is one tile that fills its placeholders; or has fewer units, where a reducer shrinks the image.

        Args:
            images: N.
            places: placeholders for units of an image.
            units: units there are.
            ahead: further placeholders before them, of tokens that are no units.
        """
        first = torch.arange(images)[:, None] * (places + ahead)  # [N, 1]
        begin = first + ahead
        special = (first + torch.arange(ahead)).flatten()
        return cls([places + ahead] * images, [begin + torch.arange(units)], [begin[:, 0] + places - 1], special)

    @classmethod
    def of_numbers(cls, numbers: Sequence[Tensor], counts: Sequence[tuple[int, int]]) -> Places:
        """From what each placeholder holds.

        Args:
            numbers: for each image [P], the number of the unit at each placeholder, counted through all tiles; -1 for none.
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
        special = (~held).nonzero()[:, 0]
        return cls([len(image) for image in numbers], groups, [group.amax(dim=1) for group in groups], special)

    @property
    def tiles(self) -> int:
        """How many there are."""
        return sum(len(group) for group in self.units)

    def owners(self) -> list[Tensor]:
        """For each group the image each of its tiles belongs to. [N]"""
        ends = torch.tensor(self.lengths).cumsum(0)
        return [torch.bucketize(last, ends, right=True) for last in self.last]

    def origins(self) -> Tensor:
        """The unit within its tile that each place holds, -1 for none. [P of all images]"""
        origin = torch.full((sum(self.lengths),), -1)
        for units in self.units:
            held = units >= 0
            origin[units[held]] = torch.arange(units.shape[1]).expand_as(units)[held]
        return origin


@dataclass(frozen=True)
class Placed:
    """Visual tokens at the placeholders of their images, all images' placeholders one after the other.

    Attributes:
        features: [P, D], zero at places that are left empty.
        source: [P] the place (counted from the image's first) that a token stands for, -1 for an empty place.
        origin: [P] its unit within its tile, -1 for none.
        kept: [N] places of each image that are not empty.
    """

    features: Tensor
    source: Tensor
    origin: Tensor
    kept: Tensor


def place(reduced: Sequence[tuple[Tensor, Tensor, Tensor]], places: Places, special: Tensor | None = None) -> Placed:
    """Put what reducers left at the last placeholders of each image.

    The tokens of a tile whose units stand in a row keep the reducer's order; tiles that are laced into each other are
    sorted by place.

    Args:
        reduced: for each group of tiles features [N, K, D], valid [N, K] and origin [N, K].
        places: of these.
        special: [M, D] features at the places that hold no unit; they always stay.

    Raises:
        ValueError: a tile keeps more tokens than it has units.
    """
    device = reduced[0][0].device
    entries = []  # (sort key, place, unit, gone, features) of all tokens
    for (feature, valid, origin), units, last in zip(reduced, places.units, places.last, strict=True):
        kept, count = feature.shape[1], units.shape[1]
        in_a_row = bool((units == units[:, :1] + torch.arange(count)).all()) and bool((units >= 0).all())
        room = int((last - units[:, 0]).amin()) + 1 if in_a_row else count
        if kept > room:
            raise ValueError(f"an image keeps {kept} tokens but has {room} placeholders")
        units, last = units.to(device), last.to(device)
        stand = torch.where(origin < 0, last[:, None], units.gather(1, origin.clamp(0, count - 1)))  # [N, K]
        if in_a_row:
            key = 2 * (units[:, :1] + torch.arange(kept, device=device)).expand_as(stand)
        else:
            key = 2 * stand + (origin < 0)
        entry = (key, stand, origin, ~valid | (stand < 0), feature)
        entries.append(tuple(value.flatten(0, 1) for value in entry))
    if special is not None and len(special):
        at = places.special.to(device)
        entries.append((2 * at, at, torch.full_like(at, -1), torch.zeros_like(at, dtype=torch.bool), special))
    return _laid_out(*(torch.cat(values) for values in zip(*entries, strict=True)), places.lengths)


def _laid_out(key: Tensor, stand: Tensor, origin: Tensor, gone: Tensor, features: Tensor, lengths: list[int]) -> Placed:
    """Tokens [E] with sort keys: sorted, and pushed to the end of each image's places. Costs no host synchronisation."""
    total, counts = sum(lengths), torch.tensor(lengths, device=key.device)
    ends = counts.cumsum(0)
    begins = ends - counts
    order = torch.where(gone, 2 * total + 2, key).argsort(stable=True)
    stand, origin, gone, features = stand[order], origin[order], gone[order], features[order]
    image = torch.bucketize(stand.clamp(min=0), ends, right=True)
    kept = torch.zeros_like(ends).index_add(0, image, (~gone).long())  # [N]
    rank = torch.arange(len(stand), device=key.device) - (kept.cumsum(0) - kept)[image]
    target = torch.where(gone, total, (ends - kept)[image] + rank)  # what is gone goes to a place that is cut off
    laid = features.new_zeros(total + 1, features.shape[1]).index_copy(0, target, features)[:total]
    source, unit = (torch.full((total + 1,), -1, device=key.device) for _ in range(2))
    source[target], unit[target] = stand - begins[image], origin
    return Placed(laid, source[:total], unit[:total], kept)
