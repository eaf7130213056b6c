"""A conversation: several questions about several images, each answered with all of what came before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llava_prumerge.inference.asking import GREEDY, TEMPLATE, Answer, ask
from llava_prumerge.inference.streaming import streamed

if TYPE_CHECKING:
    from PIL.Image import Image

NEW_TOKENS = 512


class Conversation:
    """Turns so far, and the images that the next question brings.

    Each answer is one run over the whole conversation, so that it is the answer that asking all of it at once gives,
    whatever the method chooses its tokens by.

    Args:
        model, processor: of `load_model`.
        reduction: another method than the model's own, in any form that `load_model` takes; {} for none.
        max_new_tokens: the longest answer.
        template: conversation template of LLaVA-1.5 and its kin.

    Attributes:
        turns: question, images, answer of each.
        waiting: images of the next question.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        reduction: Any = None,
        max_new_tokens: int = NEW_TOKENS,
        template: str = TEMPLATE,
    ) -> None:
        self.model, self.processor, self.reduction = model, processor, reduction
        self.max_new_tokens, self.template = max_new_tokens, template
        self.turns: list[tuple[str, list[Image], str]] = []
        self.waiting: list[Image] = []

    def show(self, image: Image) -> None:
        """Put an image before the next question."""
        self.waiting.append(image)

    def begin_anew(self) -> None:
        """Forget all turns and images."""
        self.turns, self.waiting = [], []

    def ask(
        self, question: str, hear: Callable[[str], None] = lambda piece: None, wanted: Callable[[], bool] = lambda: True
    ) -> Answer:
        """Answer a question; it becomes a turn with what was said of the answer until it was no longer wanted.

        Args:
            question: without image marks.
            hear: gets each piece of the answer.
            wanted: whether it is to go on, asked after each token.

        Raises:
            InputError: the question cannot be asked; the conversation is then as before.
        """
        spoken = streamed(self.processor.tokenizer, hear, wanted)
        answer = ask(
            self.model,
            self.processor,
            question,
            self.waiting,
            earlier=self.turns,
            reduction=self.reduction,
            max_new_tokens=self.max_new_tokens,
            template=self.template,
            **GREEDY,
            **spoken,
        )
        self.turns.append((question, self.waiting, answer.text))
        self.waiting = []
        return answer
