"""The model behind the demo: one question at a time, with any method, and pictures of what the method kept."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.inference.asking import ImageTokens, ask, method_of
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.viz.overlay import SIDE, paint_patches

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LlavaProcessor


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
        self.colour = ImagePreprocessor(processor.image_processor).padding_colour
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
                given = ask(self.model, self.processor, question, image, max_new_tokens=new_tokens)
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
        square = padded_picture(image, SIDE, self.colour)
        stages = [("into the decoder", seen.indices)]
        if seen.pruned:
            stages.append((f"from layer {max(seen.pruned)} on", seen.pruned[max(seen.pruned)]))
        return [
            (f"{title}: {len(kept)} tokens", paint_patches(square, seen.grid, {index for index in kept if index >= 0}))
            for title, kept in stages
        ]
