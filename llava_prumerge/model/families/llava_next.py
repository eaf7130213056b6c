"""LLaVA-NeXT: a base tile, then the tiles of an image as one map, unpadded, with a line break after each row."""

from __future__ import annotations

from llava_prumerge.model.families import Family
from llava_prumerge.model.tiled import TiledHost, tower_refusal

FAMILY = Family(host=TiledHost, refusal=tower_refusal)
