"""What looks at images with methods: a bare tower, or a checkpoint of any family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.public import public_name
from llava_prumerge.inference.asking import QUESTION, inspect_image
from llava_prumerge.methods.labels import NONE, method_label
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.chat import check_processor, fixed_places
from llava_prumerge.model.loading import load_model
from llava_prumerge.viz.overlay import SIDE
from llava_prumerge.viz.panels import Drawn
from llava_prumerge.viz.selection import viewer_of_tower
from llava_prumerge.viz.tiles import pictures_of

Block = dict[str, Any]
Looking = Callable[[str, Any], Iterator[Drawn]]
"""Of an image or a video and its name, a drawing for each method."""


def looking_by_tower(path: str, blocks: Sequence[Block]) -> Looking:
    """Looks at images with a bare tower.

    Raises:
        InputError: a method acts in the decoder, which a tower has not.
    """
    for block in blocks:
        if block.get("decoder") or not block.get("vision"):
            raise InputError(
                f"{method_label(block)} does not act on a tower's patches alone: give --model, not --tower"
            )
    reducers = [(method_label(block) or NONE, build_reducer(block["vision"])) for block in blocks]
    viewer = viewer_of_tower(path)

    def look(name: str, image: Any) -> Iterator[Drawn]:
        if hasattr(image, "frames"):
            raise InputError(f"{name} is a video: give --model instead of --tower")
        for label, reducer in reducers:
            ((seen, picture),) = viewer.look([image], reducer)
            yield Drawn(name, public_name(path) or path, label, "", seen, [picture])

    return look


def looking_by_model(path: str, blocks: Sequence[Block | None], question: str | None) -> Looking:
    """Looks at images with a checkpoint: its own method for None, and others.

    Raises:
        InputError: a method is to be the checkpoint's own, and it has none.
    """
    model, processor = load_model(path)
    own = model.config.reduction
    if None in blocks and not own:
        raise InputError(f"{path} has no method of its own; give --method")
    check_processor(processor, model.config)
    asked = QUESTION if question is None else question
    padding = fixed_places(model.config) is not None  # as LLaVA does; drawings then have the image's own resolution
    preprocessor = ImagePreprocessor(processor.image_processor) if padding else None

    def look(name: str, image: Any) -> Iterator[Drawn]:
        for block in blocks:
            seen = inspect_image(model, processor, image, asked, reduction=block, merges=True)
            if preprocessor is None:
                whole = image.frames[0] if hasattr(image, "frames") else image
                pictures = pictures_of(seen, whole, processor.image_processor)
            else:
                padded = preprocessor.aspect == "pad"
                pictures = [padded_picture(image, SIDE, preprocessor.padding_colour) if padded else image]
            label = method_label(own if block is None else block)
            yield Drawn(name, public_name(path) or path, label, asked, seen, pictures)

    return look
