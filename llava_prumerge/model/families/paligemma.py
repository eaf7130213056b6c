"""PaliGemma 1 and 2: SigLIP's patches as they are; all tokens of the prompt see each other, the answer looks back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.model.families import Family
from llava_prumerge.model.host import Host, in_dtype_of
from llava_prumerge.model.placement import ForwardPass, Places
from llava_prumerge.model.vision_tower import encode
from llava_prumerge.ops.layout import IGNORE_INDEX
from llava_prumerge.text.chat_templates import ChatTemplateError
from llava_prumerge.text.templates import IMAGE_MARKER, NoPlaceError, Round, Segment, Template, shown_images


class PaliGemmaHost(Host):
    """See the file."""

    def hand_over(self, kwargs: dict[str, Any], told: ForwardPass) -> None:
        """See `Host`: as in the stock code the prompt is where the marks are 0, and only until there is a cache."""
        marks, cache = kwargs.pop("token_type_ids", None), kwargs.get("past_key_values")
        begins = cache is None or not cache.is_initialized
        if marks is not None and (begins or told.is_image is not None):
            told.blocks, told.blocks_pass_windows = torch.where(marks == 0, 0, -1), True
        self.carry_mask(kwargs, told, torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device))

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D]"""
        return self.multi_modal_projector(in_dtype_of(self.multi_modal_projector, features))

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Stock features, or what the reducer leaves of them. [N, 3, h, w]"""
        if self.reducer is None:
            return super().get_image_features(pixel_values, **kwargs)
        tiles = encode(self.vision_tower, pixel_values.to(self.dtype), -1, last=True)
        count = tiles.features.shape[1]
        places = Places.whole(len(pixel_values), count, count)
        return self.reduce([tiles], places, self.project, lambda _: pixel_values, stacked=count)


@dataclass(frozen=True)
class PrefixTemplate(Template):
    """What PaliGemma's processor writes of a question and an answer: images, beginning of sequence, question, line break, answer."""

    def segments(self, rounds: Sequence[Round], system: str | None = None) -> list[Segment]:
        """See `Template`.

        Raises:
            ChatTemplateError: there is more than one question.
            NoPlaceError: there is a system text.
        """
        if system is not None:
            raise NoPlaceError("PaliGemma's prompt has no place for a system text")
        if len(rounds) != 1:
            raise ChatTemplateError(f"PaliGemma is trained on one question and its answer, and there are {len(rounds)}")
        ((question, answer),) = rounds
        shown = shown_images(question)
        ahead = IMAGE_MARKER * question.count(IMAGE_MARKER, 0, shown)
        pieces = [Segment(ahead + self.opening, False), Segment(question[shown:], False, written=True)]
        pieces.append(Segment(self.closing, False))
        return pieces if answer is None else [*pieces, Segment(answer, True, written=True), Segment(self.end, True)]


def _template(processor: Any) -> PrefixTemplate:
    tokenizer = processor.tokenizer
    return PrefixTemplate("paligemma", tokenizer.bos_token, "", "\n", "", tokenizer.eos_token)


def _beside(processor: Any, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """All that stands ahead of the answer sees each other."""
    return {"token_type_ids": ((labels != IGNORE_INDEX).cumsum(0) > 0).long()}


FAMILY = Family(
    template=_template,
    beside=_beside,
    host=PaliGemmaHost,
    places=lambda config: (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
    text=lambda processor, question, images: processor.image_token * images + question,  # it was trained without a chat
)
