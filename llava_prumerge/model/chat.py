"""Questions as a family's own processor writes them: its chat template, its pixels, its placeholders for each image.

LLaVA-1.5 and its kin, whose images all have the same number of placeholders, are asked as they were trained
(`data/conversation.py`); everything else is asked by this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jinja2 import TemplateError

from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.text.templates import get_template

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Clip(Protocol):
    """Frames of a video, and what processors are told of it; `data.videos.Video` is one."""

    @property
    def frames(self) -> Sequence[Image]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...


Asked = tuple[str, Sequence["Image | Clip"]]
"""A question, and its images or videos, not both."""


def fixed_places(config: Any) -> int | None:
    """Placeholders of an image in models that are asked by LLaVA's templates; None for those that `ChatProcessor` asks."""
    family = family_of(stock_type(config.model_type))
    return family.places(config) if family.templates(config) else None


def check_processor(processor: Any, config: Any) -> None:
    """Whether there is what questions are asked with.

    Raises:
        InputError: there is no processor, or it has neither a tokenizer nor an image processor.
    """
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InputError(
            f"the {stock_type(config.model_type)} checkpoint has no processor: it needs processor_config.json or "
            "preprocessor_config.json, and the tokenizer's files, beside its weights"
        )


class ChatProcessor:
    """Makes batches of questions about images or videos for a model of any family.

    Args:
        processor: the checkpoint's.
        config: the model's.
        template: a conversation template, for processors that have no chat template.
    """

    def __init__(self, processor: Any, config: Any, template: str) -> None:
        self.processor, self.tokenizer, self.template = processor, processor.tokenizer, template
        family = family_of(stock_type(config.model_type))
        self.mark, self.own_text = family.mark(processor), family.text
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def text(self, question: str, pictures: int, kind: str = "image") -> str:
        """The text after which the model answers, a mark for each image or video in front of the question.

        Args:
            kind: "image" or "video".

        Raises:
            InputError: the question holds such a mark itself, or the model takes no videos.
        """
        mark = self.mark if kind == "image" else getattr(self.processor, "video_token", None)
        if mark is None:
            raise InputError(f"a {type(self.processor).__name__} takes no videos")
        self._check_mark(question, mark)
        if getattr(self.processor, "chat_template", None) is None:
            if self.own_text is not None and kind == "image":
                return self.own_text(self.processor, question, pictures)
            return get_template(self.template).render([(f"{mark}\n" * pictures + question, None)])
        parts = [{"type": kind}] * pictures + [{"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )

    def text_of(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The same of a whole conversation.

        Args:
            turns: messages as chat templates take them, their content lists of {"type": "image"} (or "video") and
                {"type": "text"}.

        Raises:
            InputError: a text holds an image's mark itself, the template refuses the turns, or the processor has none, and
                there is more than a question with its images in front.
        """
        parts = [part for turn in turns for part in turn["content"]]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        shown = [part for part in parts if part["type"] != "text"]
        kinds = {part["type"] for part in shown} or {"image"}
        if len(turns) == 1 and len(kinds) == 1 and parts[: len(shown)] == shown:
            return self.text("".join(texts), len(shown), *kinds)
        if getattr(self.processor, "chat_template", None) is None:
            raise InputError("this model has no chat template: it takes one question, its images in front of the text")
        for text in texts:
            self._check_mark(text, self.mark)
        try:
            return self.processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InputError(f"the model's chat template refuses the turns: {' '.join(str(error).split())}") from error

    def ids(self, question: str, pictures: int, kind: str = "image") -> list[int]:
        """Tokens of that text, each mark unexpanded."""
        text = self.text(question, pictures, kind)
        return self.tokenizer(text, add_special_tokens=self._adds_bos(text)).input_ids

    def __call__(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        """Questions with their images or videos, padded on the left. -> input_ids [B, L], attention_mask, and pixels"""
        kind = "video" if any(hasattr(one, "frames") for _, shown in asked for one in shown) else "image"
        return self.batch([self.text(text, len(shown), kind) for text, shown in asked], [shown for _, shown in asked])

    def batch(self, texts: Sequence[str], shown: Sequence[Sequence[Image | Clip]]) -> dict[str, Tensor]:
        """The same of texts that are written already, and the images or the videos of each."""
        every: list[Any] = [one for row in shown for one in row]
        given: dict[str, Any] = {}
        if every and hasattr(every[0], "frames"):
            given = {"videos": [[np.asarray(frame) for frame in clip.frames] for clip in every]}
            given |= {"video_metadata": [clip.metadata for clip in every], "do_sample_frames": False}
        elif every:
            given = {"images": [list(row) for row in shown]}
        try:
            made = self.processor(
                text=list(texts),
                **given,
                padding=True,
                return_tensors="pt",
                add_special_tokens=self._adds_bos(texts[0]),
            )
        except ValueError as error:
            if every:
                raise
            raise InputError(f"this model's processor takes no question without an image: {error}") from error
        return dict(made)

    def _check_mark(self, text: str, mark: str) -> None:
        if mark in text:
            raise InputError(f"the question holds {mark!r} itself, which stands for an image: {text!r}")

    def _adds_bos(self, text: str) -> bool:
        """Whether the tokenizer is to add what its texts begin with; some chat templates have written it."""
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)
