"""Vision towers that see all images as one sequence: images of any size, whose units are cut out of it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.methods.base import Earlier
from llava_prumerge.model.placement import Places, Tiles
from llava_prumerge.model.vision_tower import blocks_of, caught_inputs, make_projections, tower_spec


@dataclass(frozen=True)
class PackedImages:
    """Images of a sequence, those of one size together.

    Attributes:
        tiles: a group for each size.
        members: for each group, which images it holds.
        places: of their units: an image's placeholders are its units, row by row.
        output: what the tower gave.
    """

    tiles: list[Tiles]
    members: list[list[int]]
    places: Places
    output: Any

    def pixels(self, of: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """For `Host.reduce`: the pixels of a group's images, from those of each."""
        return lambda group: torch.stack([of(at) for at in self.members[group]])


def encode_packed(
    tower: nn.Module,
    run: Callable[[], Any],
    features: Callable[[Any], Tensor],
    grids: Sequence[tuple[int, int]],
    depth: int | None = None,
    fold: int = 1,
    order: Tensor | None = None,
    patch_order: Tensor | None = None,
) -> PackedImages:
    """Run such a tower and cut its sequence into images.

    Args:
        tower: one of `vision_tower.TOWERS`.
        run: runs it.
        features: of what it gave: [S, C], a row for each patch in the order of the sequence.
        grids: rows and columns of units of each image; the rows of all frames of a video together.
        depth: blocks that make the features; None for all.
        fold: patches of a unit, which follow each other.
        patch_order: [S] patches in the order in which those of a unit follow each other; None: they do.
        order: [S / fold] where each unit stands in the sequence, of towers that permute it; None: as they come.
    """
    depth = len(blocks_of(tower)) if depth is None else depth
    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trains), caught_inputs(tower, depth) as caught:
        output = run()

    def raster(rows: Tensor) -> Tensor:
        rows = rows.reshape(-1, rows.shape[-1])
        rows = (rows if patch_order is None else rows[patch_order]).reshape(-1, fold, rows.shape[-1])
        return (rows if order is None else rows[order]).flatten(0, 1)

    states = {which: raster(given[0])[None] for which, given in caught.items()}  # [1, S, C]
    angles = next(iter(caught.values()))[1].get("position_embeddings")
    rotary = None if angles is None else tuple(raster(part) for part in angles)
    hidden = raster(features(output))
    units = torch.arange(len(hidden), device=hidden.device).view(-1, fold)
    projections = make_projections(tower, states, depth, trains, rotary, units)
    heads = getattr(tower.config, tower_spec(tower).heads)
    lengths = [rows * columns for rows, columns in grids]
    begins = torch.tensor([0, *lengths]).cumsum(0)
    tiles, members, where = [], [], []
    for grid in dict.fromkeys(grids):
        images = [at for at, other in enumerate(grids) if other == grid]
        places = begins[images][:, None] + torch.arange(grid[0] * grid[1])  # [N, U]
        rows = places.to(hidden.device)
        tiles.append(Tiles(hidden.view(-1, fold * hidden.shape[1])[rows], grid, _cut(projections, rows), heads))
        members.append(images)
        where.append(places)
    special = begins.new_zeros(0)
    return PackedImages(tiles, members, Places(lengths, where, [p[:, -1] for p in where], special), output)


def _cut(projections: Callable[..., tuple[Tensor, Tensor]], rows: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The projections of some images [N, U] of a sequence."""

    def cut(own: bool | Earlier = False) -> tuple[Tensor, Tensor]:
        queries, keys = projections(own)
        return queries[0][rows], keys[0][rows]

    return cut
