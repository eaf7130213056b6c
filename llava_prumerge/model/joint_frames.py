"""The frames of a video reduced together: one image to the method, of all frames' patches, and frames again afterwards.

A class token looks at its own frame, which is all the tower computes. So the attention of a video's patches is that of
their frames, one after the other; outliers, budget, sample, neighbours and what is merged are the video's. What stays is
put in the order of time: in that of attention the frames would be mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from llava_prumerge.model.placement import Places, Tiles


def reduced_jointly(reduce: Callable[[Tiles, Places], Any], tiles: Tiles, places: Places, frames: int) -> Any:
    """Reduce videos whose frames, one after the other, are the tiles of one group.

    Args:
        reduce: from tiles and their places to `ReducedFeatures`.
        tiles: [videos x T, U, C].
        places: of their units.
        frames: T.

    Returns:
        What `reduce` gives, its tiles counted as frames, and its units within their frame.
    """
    count, units = tiles.features.shape[:2]
    features = tiles.features.unflatten(0, (-1, frames)).flatten(1, 2)  # [videos, T x U, C]
    rows, columns = tiles.grid
    videos = replace(tiles, features=features, grid=(frames * rows, columns), prefix=None)
    (where,), (last,) = places.units, places.last
    where, last = where.unflatten(0, (-1, frames)).flatten(1), last[frames - 1 :: frames]
    output = reduce(videos, replace(places, units=[where], last=[last], by_place=True))
    visual = output.visual_tokens
    origin = torch.where(visual.origin < 0, visual.origin, visual.origin % units)
    output.visual_tokens = replace(visual, origin=origin, tiles=count)
    return output
