"""An answer word by word: what `generate` is given so that somebody hears each piece of the text, and can end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer


class Spoken(TextStreamer):  # type: ignore[misc]  # transformers is untyped here
    """Hands on each piece of text as soon as no later token can change it.

    Args:
        tokenizer: of the model.
        hear: gets the pieces; together they are the answer.
    """

    def __init__(self, tokenizer: Any, hear: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.hear = hear

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """A piece, empty at the end where nothing is left."""
        if text:
            self.hear(text)


class Until(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer after the token at which nobody wants it any more.

    Args:
        wanted: asked after each token.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.wanted = wanted

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """[B], one truth value for all rows."""
        return torch.full((len(input_ids),), not self.wanted(), device=input_ids.device)


def streamed(tokenizer: Any, hear: Callable[[str], None], wanted: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Arguments for `generate`.

    Args:
        tokenizer: of the model.
        hear: gets each piece of the text.
        wanted: whether the answer is to go on; always, without it.
    """
    ends = {} if wanted is None else {"stopping_criteria": StoppingCriteriaList([Until(wanted)])}
    return {"streamer": Spoken(tokenizer, hear), **ends}
