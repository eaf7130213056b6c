"""Conversations as batches: turns of text and images, as a model of any family takes them, and what the model says next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_prumerge.data.conversation import encode
from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.attach import plain
from llava_prumerge.model.chat import ChatProcessor, check_processor, fixed_places
from llava_prumerge.text.chat_templates import OWN, ChatTemplate, asked_with, resolve_template, spoken_by
from llava_prumerge.text.templates import IMAGE_MARKER

if TYPE_CHECKING:
    from PIL.Image import Image

Part: TypeAlias = "str | Image"
SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: "system", "user" or "assistant".
        parts: texts and images (in RGB) in their order; images of the user alone.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def images(self) -> list[Image]:
        """The images, in their order."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def text(self) -> str:
        """The texts, without the images."""
        return "".join(part for part in self.parts if isinstance(part, str))


Conversation = Sequence[Turn]


@dataclass(frozen=True)
class Reply:
    """What a model says to a conversation.

    Attributes:
        text: without special tokens and surrounding space, up to the first text that ends it.
        prompt_tokens: with every placeholder of the images, without padding.
        new_tokens: generated, the end of the answer included.
    """

    text: str
    prompt_tokens: int
    new_tokens: int


def placed(parts: Sequence[Part], marker: str = IMAGE_MARKER) -> list[Part]:
    """Parts with the images where the texts have marks for them; as they are where no text has a mark.

    Benchmarks write an image's place either way: as a part of its own, or as `<image>` within the text.

    Raises:
        InputError: the number of marks is not that of the images.
    """
    images = [part for part in parts if not isinstance(part, str)]
    pieces = [part.split(marker) for part in parts if isinstance(part, str)]
    marks = sum(len(found) - 1 for found in pieces)
    if not marks:
        return list(parts)
    if marks != len(images):
        raise InputError(f"the text has {marks} times {marker!r}, which stands for an image, and {len(images)} images")
    found: list[Part] = []
    following = iter(images)
    for texts in pieces:
        found.append(texts[0])
        for text in texts[1:]:
            found += [next(following), text.removeprefix("\n")]
    return [part for part in found if part != ""]


class Conversations:
    """Makes batches of conversations for a model.

    Args:
        model, processor: of `load_model`, or a stock model of a served family with its processor.
        template: conversation template of LLaVA-1.5 and its kin; the default gives way to the one that the model was trained
            with. Other families bring their own.
        aspect: how images of LLaVA-1.5 and its kin become square, see `ImagePreprocessor`.

    Raises:
        InputError: there is no processor, or no such template.
    """

    def __init__(self, model: Any, processor: Any, template: str = "vicuna_v1", aspect: str = "pad") -> None:
        self.model, self.processor, self.config = model, processor, plain(model).config
        check_processor(processor, self.config)
        self.tokenizer = processor.tokenizer
        self.places = fixed_places(self.config)
        if self.places is None:
            self.chat = ChatProcessor(processor, self.config, template)
        else:
            self.template = asked_with(template, processor)
            self.preprocess = ImagePreprocessor(processor.image_processor, aspect=aspect)
        self.padding = self.tokenizer.pad_token_id
        if self.padding is None:
            self.padding = self.tokenizer.eos_token_id

    def text(self, conversation: Conversation) -> str:
        """The text after which the model answers, with a mark for each image.

        Raises:
            InputError: turns that do not alternate, that the model's template has no place for, or marks without images.
        """
        turns = [Turn(turn.role, tuple(placed(turn.parts))) for turn in conversation]
        _check_order(turns)
        if self.places is None:
            return self.chat.text_of([_as_message(turn) for turn in turns])
        system = turns[0].text if turns[0].role == SYSTEM else None
        turns = turns[1:] if turns[0].role == SYSTEM else turns
        said = [
            "".join(part if isinstance(part, str) else f"{IMAGE_MARKER}\n" for part in turn.parts) for turn in turns
        ]
        answers: list[str | None] = [*said[1::2], None]
        return self._template(system).render(list(zip(said[::2], answers, strict=True)))

    def _template(self, system: str | None) -> Any:
        if system is None:
            return self.template
        if isinstance(self.template, ChatTemplate):
            return resolve_template(OWN, self.processor, system)
        return spoken_by(self.template, system)

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """A batch, padded on the left, on the model's device. -> input_ids [B, L], attention_mask, and what images are made of

        Conversations of one batch have all images, or all have none.
        """
        texts = [self.text(conversation) for conversation in conversations]
        images = [[image for turn in conversation for image in turn.images] for conversation in conversations]
        made = self.chat.batch(texts, images) if self.places is None else self._templated(texts, images)
        weight = next(self.model.parameters())
        return {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in made.items()
        }

    def _templated(self, texts: Sequence[str], images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        rows = [
            torch.tensor(encode(self.tokenizer, text, self.config.image_token_id, self.places or 0)) for text in texts
        ]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.padding, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        made = {"input_ids": ids, "attention_mask": mask}
        if pictures := [image for row in images for image in row]:
            made["pixel_values"] = self.preprocess(pictures)
        return made

    @torch.inference_mode()
    def replies(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        until: Sequence[str] = (),
        **generation: Any,
    ) -> list[Reply]:
        """What the model says to each conversation; greedy unless `generation` says otherwise.

        Args:
            conversations: all with images, or all without.
            max_new_tokens: the longest reply.
            until: texts that end a reply, and are no part of it.
            **generation: for `model.generate`.
        """
        inputs = self(conversations)
        length, stops = inputs["input_ids"].shape[1], [text for text in until if text]
        ended = _Until(self.tokenizer, stops, length, len(conversations))
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        sequences = self.model.generate(
            **inputs,
            **(greedy | generation),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.padding,
            stopping_criteria=[ended] if stops else None,
        )
        new = sequences[:, length:]  # [B, T]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        asked = inputs["attention_mask"].sum(dim=1).tolist()
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        counts = [at or _generated(row, ends) for at, row in zip(ended.at, new.tolist(), strict=True)]
        return [
            Reply(_before(text, stops).strip(), *tokens)
            for text, *tokens in zip(texts, map(int, asked), counts, strict=True)
        ]


class _Until:
    """A stopping criterion: ends a row as soon as what was generated holds one of some texts, within tokens or across them.

    Attributes:
        at: tokens that each row had then; 0 where it did not end so.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], length: int, rows: int) -> None:
        self.tokenizer, self.stops, self.length, self.at = tokenizer, stops, length, [0] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = input_ids[:, self.length :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        self.at = [
            at or (new.shape[1] if any(stop in text for stop in self.stops) else 0)
            for at, text in zip(self.at, texts, strict=True)
        ]
        return torch.tensor([at > 0 for at in self.at], device=input_ids.device)


def _before(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _generated(row: list[int], ends: Collection[int]) -> int:
    """Tokens of a row up to its end; behind it is padding."""
    return next((at + 1 for at, token in enumerate(row) if token in ends), len(row))


def _as_message(turn: Turn) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
    return {"role": turn.role, "content": parts}


def _check_order(turns: Conversation) -> None:
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == [SYSTEM] else roles
    if spoken != [ROLES[1 + at % 2] for at in range(len(spoken))] or len(spoken) % 2 == 0:
        raise InputError(
            f"the turns are {', '.join(roles) or 'none'}; expected: system or none, then user and assistant in turn, "
            "the user last"
        )
    if any(turn.images for turn in turns if turn.role != USER):
        raise InputError("only turns of the user may hold images")
