"""Questions as a family's own processor writes them: its chat template, its pixels, its placeholders for each image.

LLaVA-1.5 and its kin, whose images all have the same number of placeholders, are asked as they were trained
(`data/conversation.py`); everything else is asked by this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.text.templates import get_template

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Asked = tuple[str, Sequence["Image"]]


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
    """Makes batches of questions about images for a model of any family.

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

    def text(self, question: str, images: int) -> str:
        """The text after which the model answers, a mark for each image in front of the question.

        Raises:
            InputError: the question holds an image's mark itself.
        """
        self._check_mark(question)
        if getattr(self.processor, "chat_template", None) is None and self.own_text is not None:
            return self.own_text(self.processor, question, images)
        if getattr(self.processor, "chat_template", None) is None:
            return get_template(self.template).render([(f"{self.mark}\n" * images + question, None)])
        parts = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )

    def text_of(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The same of a whole conversation.

        Args:
            turns: messages as chat templates take them, their content lists of {"type": "image"} and {"type": "text"}.

        Raises:
            InputError: a text holds an image's mark itself, the template refuses the turns, or the processor has none, and
                there is more than a question with its images in front.
        """
        parts = [part for turn in turns for part in turn["content"]]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        images = [part for part in parts if part["type"] == "image"]
        if len(turns) == 1 and parts[: len(images)] == images:
            return self.text("".join(texts), len(images))
        if getattr(self.processor, "chat_template", None) is None:
            raise InputError("this model has no chat template: it takes one question, its images in front of the text")
        for text in texts:
            self._check_mark(text)
        try:
            return self.processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InputError(f"the model's chat template refuses the turns: {' '.join(str(error).split())}") from error

    def ids(self, question: str, images: int) -> list[int]:
        """Tokens of that text, each image's mark unexpanded."""
        text = self.text(question, images)
        return self.tokenizer(text, add_special_tokens=self._adds_bos(text)).input_ids

    def __call__(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        """Questions with their images, padded on the left. -> input_ids [B, L], attention_mask, and what images are made of"""
        return self.batch([self.text(text, len(images)) for text, images in asked], [images for _, images in asked])

    def batch(self, texts: Sequence[str], images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        """The same of texts that are written already, and the images of each."""
        made = self.processor(
            text=list(texts),
            images=[list(row) for row in images] if any(images) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._adds_bos(texts[0]),
        )
        return dict(made)

    def _check_mark(self, text: str) -> None:
        if self.mark in text:
            raise InputError(f"the question holds {self.mark!r} itself, which stands for an image: {text!r}")

    def _adds_bos(self, text: str) -> bool:
        """Whether the tokenizer is to add what its texts begin with; some chat templates have written it."""
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)
