"""What draws an image with what a method keeps of it: of a tower, or of a checkpoint of any family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import QUESTION, inspect_image
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.chat import check_processor, fixed_places
from llava_prumerge.model.loading import load_model
from llava_prumerge.viz.overlay import describe, write_overlay
from llava_prumerge.viz.selection import Viewer, viewer_of_model, viewer_of_tower
from llava_prumerge.viz.tiles import describe_tiles, write_tiles

if TYPE_CHECKING:
    from PIL.Image import Image

Drawer = Callable[[Sequence["Image"], Callable[[int], Path]], Iterator[tuple[Path, str]]]
"""Draws images, told where each is to go. -> the files written, with a line about each."""


def _of_viewer(viewer: Viewer) -> tuple[str, Drawer]:
    name = viewer.reducer.name

    def drawn(images: Sequence[Image], target: Callable[[int], Path]) -> Iterator[tuple[Path, str]]:
        for at, selection in enumerate(viewer.look(images)):
            yield write_overlay(selection, name, target(at)), describe(selection, name)

    return name, drawn


def drawer_of_tower(path: str, block: dict[str, Any]) -> tuple[str, Drawer]:
    """The name of a method, and what draws it on a bare tower."""
    return _of_viewer(viewer_of_tower(path, build_reducer(block)))


def drawer_of_model(path: str, block: dict[str, Any] | None, question: str | None) -> tuple[str, Drawer]:
    """The name of a checkpoint's method, its own for None or another one, and what draws it."""
    model, processor = load_model(path, None if block is None else {"vision": block})
    if model.model.reducer is None:
        raise InputError(f"{path} has no vision reducer of its own; give --method")
    check_processor(processor, model.config)
    if fixed_places(model.config) is not None:
        return _of_viewer(viewer_of_model(model, processor, question))
    name = model.model.reducer.name

    def drawn(images: Sequence[Image], target: Callable[[int], Path]) -> Iterator[tuple[Path, str]]:
        for at, image in enumerate(images):
            seen = inspect_image(model, processor, image, QUESTION if question is None else question)
            yield write_tiles(seen, image, processor.image_processor, name, target(at)), describe_tiles(seen, name)

    return name, drawn
