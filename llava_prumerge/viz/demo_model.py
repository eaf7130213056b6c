"""The model behind the demo: one question at a time, with any method, heard word by word; and what the method kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.inference.asking import GREEDY, ImageTokens, ask, inspect_image, method_of
from llava_prumerge.inference.streaming import streamed
from llava_prumerge.inference.watching import Tile
from llava_prumerge.model.chat import check_processor, fixed_places
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.viz.overlay import SIDE
from llava_prumerge.viz.panels import Drawn, Panel, panels_of
from llava_prumerge.viz.tiles import pictures_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LlavaProcessor

    from llava_prumerge.viz.demo_queue import Question

    Side = tuple[str, dict[str, Any]]

MOST = 16384
"""The largest budget where each image has its own number of visual tokens."""
VIEWS = {"attention": ("attention",), "merged": ("clusters", "rest")}
"""What can be looked at on demand, and the kinds of its pictures."""


@dataclass(frozen=True)
class Answer:
    """A question's answer and what it took.

    Attributes:
        text: the answer.
        seen: what is kept of the image: before the decoder, and after each layer before which a pruner acted.
        seconds: from the decoded image to the text.
        first: seconds of it until the first token is known.
        new_tokens: of the answer.
        untrained: names of methods whose parameters were not trained with this model.
    """

    text: str
    seen: ImageTokens
    seconds: float
    first: float
    new_tokens: int
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
        self.places = fixed_places(model.config)
        self.tiled = self.places is None
        self.colour = (255, 255, 255) if self.tiled else ImagePreprocessor(processor.image_processor).padding_colour
        self.most = self.places or MOST
        self._turn = threading.Lock()  # the methods belong to the model, so questions take turns

    def answer(
        self,
        image: Image,
        question: str,
        block: dict[str, Any],
        new_tokens: int,
        hear: Callable[[str], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Answer:
        """Ask one question about one image.

        Args:
            image: in RGB.
            question: the user's turn, without image mark.
            block: the reduction.
            new_tokens: the longest answer.
            hear: gets each piece of the answer as soon as it is there.
            wanted: asked after each token whether the answer is to go on.

        Raises:
            ReductionError: the method cannot do what its settings say.
            InputError: the question holds an image mark.
        """
        host = self.model.model
        live = {} if hear is None else GREEDY | streamed(self.processor.tokenizer, hear, wanted)
        with self._turn:
            own = host.reducer, host.decoder.pruner
            with method_of(self.model, block):
                given = ask(
                    self.model, self.processor, question, image, max_new_tokens=new_tokens, pictures=self.tiled, **live
                )
                methods = [m for m in (host.reducer, host.decoder.pruner) if m is not None and m not in own]
                untrained = [method.name for method in methods if any(True for _ in method.parameters())]
        seen = given.images[0]
        return Answer(
            text=given.text,
            seen=seen if seen.tiles else replace(seen, tiles=(Tile(seen.grid),)),
            seconds=given.total_seconds,
            first=given.total_seconds - given.seconds["decode"],
            new_tokens=given.new_tokens,
            untrained=untrained,
        )

    def answers(
        self, image: Image, question: str, sides: Sequence[Side], new_tokens: int, heard: Question
    ) -> Iterator[tuple[int, dict[str, Any], Answer]]:
        """Ask one question with several methods, one after the other, and say what comes of it on the way.

        Args:
            image, question, new_tokens: as for `answer`.
            sides: (name, block) of each method.
            heard: is told "begin" and "text", and ends it when nobody wants an answer any more.

        Yields:
            The number of the side, its block, and its answer.
        """
        for side, (name, block) in enumerate(sides):
            heard.say("begin", side=side, method=name, reduction=block)

            def hear(text: str, side: int = side) -> None:
                heard.say("text", side=side, text=text)

            yield side, block, self.answer(image, question, block, new_tokens, hear, heard.is_wanted)
            if not heard.is_wanted():
                return

    def look(self, image: Image, question: str, block: dict[str, Any], show: str) -> list[Panel]:
        """Pictures of what a method does with an image, in a pass of its own.

        Args:
            image, question, block: as for `answer`.
            show: a key of `VIEWS`.

        Returns:
            The pictures; none of "merged" where each token is one patch.

        Raises:
            ReductionError: the method cannot do what its settings say.
            InputError: the question holds an image mark.
        """
        with self._turn:
            seen = inspect_image(
                self.model,
                self.processor,
                image,
                question,
                reduction=block,
                attention=show == "attention",
                merges=show == "merged",
            )
        drawn = Drawn("", "", "", question, replace(seen, left={}), self.pictures(image, seen))
        return [panel for panel in panels_of(drawn) if panel.kind in VIEWS[show]]

    def pictures(self, image: Image, seen: ImageTokens) -> list[Image]:
        """The tiles of an image, as the tower saw them; of a model without tiles the image, padded as the model pads it."""
        if self.tiled:
            return pictures_of(seen, image, self.processor.image_processor)
        return [padded_picture(image, SIDE, self.colour)]
