"""The model behind the demo: one question at a time, with any method, and pictures of what the method kept."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.inference.asking import ImageTokens, ask, method_of
from llava_prumerge.model.chat import check_processor, fixed_places
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.viz.overlay import SIDE, paint_patches
from llava_prumerge.viz.tiles import paint_tiles, pictures_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LlavaProcessor


MOST = 16384
"""The largest budget where each image has its own number of visual tokens."""


@dataclass(frozen=True)
class Answer:
    """A question's answer and what it took.

    Attributes:
        text: the answer.
        full: visual tokens of the image without a method.
        kept: visual tokens that reached the decoder.
        layers: visual tokens that each decoder layer saw.
        seconds: from the decoded image to the text.
        new_tokens: of the answer.
        pictures: (title, image) of kept patches: before the decoder and, where a pruner acted, in the last layer.
        untrained: names of methods whose parameters were not trained with this model.
    """

    text: str
    full: int
    kept: int
    layers: list[int]
    seconds: float
    new_tokens: int
    pictures: list[tuple[str, Image]]
    untrained: list[str]


class DemoModel:
    """A loaded model whose methods can be exchanged.

    Args:
        model: in evaluation mode.
        processor: tokenizer and image processor.
    """

    def __init__(self, model: PruMergeLlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.model, self.processor = model, processor
        self.own_block: dict[str, Any] = model.config.reduction or {}
        check_processor(processor, model.config)
        self.tiled = fixed_places(model.config) is None
        self.colour = (255, 255, 255) if self.tiled else ImagePreprocessor(processor.image_processor).padding_colour
        self.most = fixed_places(model.config) or MOST
        self._turn = threading.Lock()  # the methods belong to the model, so questions take turns

    def answer(self, image: Image, question: str, block: dict[str, Any], new_tokens: int) -> Answer:
        """Ask one question about one image.

        Args:
            image: in RGB.
            question: the user's turn, without image mark.
            block: the reduction.
            new_tokens: the longest answer.

        Raises:
            ReductionError: the method cannot do what its settings say.
            InputError: the question holds an image mark.
        """
        host = self.model.model
        with self._turn:
            own = host.reducer, host.decoder.pruner
            with method_of(self.model, block):
                given = ask(self.model, self.processor, question, image, max_new_tokens=new_tokens, pictures=self.tiled)
                methods = [m for m in (host.reducer, host.decoder.pruner) if m is not None and m not in own]
                untrained = [method.name for method in methods if any(True for _ in method.parameters())]
        seen = given.images[0]
        return Answer(
            text=given.text,
            full=seen.full,
            kept=seen.kept,
            layers=list(seen.layers),
            seconds=given.total_seconds,
            new_tokens=given.new_tokens,
            pictures=self._draw(image, seen),
            untrained=untrained,
        )

    def _draw(self, image: Image, seen: ImageTokens) -> list[tuple[str, Image]]:
        stages = [("into the decoder", seen.tokens)]
        if seen.left:
            stages.append((f"from layer {max(seen.left)} on", seen.left[max(seen.left)]))
        if self.tiled:
            tiles = pictures_of(seen, image, self.processor.image_processor)
            return [(f"{title}: {len(kept)} tokens", paint_tiles(seen, kept, tiles)) for title, kept in stages]
        square = padded_picture(image, SIDE, self.colour)
        return [
            (f"{title}: {len(kept)} tokens", paint_patches(square, seen.grid, {unit for _, unit in kept if unit >= 0}))
            for title, kept in stages
        ]
