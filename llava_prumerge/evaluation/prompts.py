"""Questions as a model takes them: LLaVA-1.5's as it was trained, those of other families by their own processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.images import ImagePreprocessor, decode_base64, load_image
from llava_prumerge.data.videos import Video, VideoFolder, is_flipped
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.settings import EvaluationSettings
from llava_prumerge.model.chat import ChatProcessor, check_processor, fixed_places
from llava_prumerge.text.chat_templates import asked_with

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pictures:
    """The images of a batch.

    Attributes:
        pixels: [U, 3, S, S], each different image once.
        index: [B], which of them a question is about.
    """

    pixels: Tensor
    index: Tensor


class Prompter:
    """What turns questions into a model's arguments.

    Args:
        processor: the checkpoint's.
        settings: template, aspect and trusted folders.
        images: the folder of the images.
    """

    def __init__(self, processor: Any, settings: EvaluationSettings, images: Path | None) -> None:
        self.tokenizer = processor.tokenizer
        self.images, self.settings = images, settings
        self.encoded: dict[tuple[str, bool], list[int]] = {}
        self.padding = self.tokenizer.pad_token_id
        if self.padding is None:
            self.padding = self.tokenizer.eos_token_id

    def encode(self, question: Question) -> list[int]:
        """Token ids of the whole prompt, with a single placeholder for an image; kept, as they are asked for twice."""
        key = question.text, question.has_image
        if key not in self.encoded:
            self.encoded[key] = self.ids(question)
        return self.encoded[key]

    def ids(self, question: Question) -> list[int]:
        """The same, made."""
        raise NotImplementedError

    def pictures(self, questions: Sequence[Question]) -> Any:
        """What costs time of a batch's images, made ahead in a thread; None for a batch without images."""
        raise NotImplementedError

    def inputs(self, questions: Sequence[Question], pictures: Any, start: Sequence[int]) -> dict[str, Tensor]:
        """A batch as the model takes it, padded on the left behind the `start` that all prompts share."""
        raise NotImplementedError

    def begun(self) -> list[list[int]]:
        """The prompts that have been encoded, whose beginning can be run once; none where their ids are not the model's."""
        return []

    def read_image(self, question: Question) -> Image:
        """The question's image, in RGB."""
        try:
            if question.embedded is not None:
                return decode_base64(question.embedded, "its image")
            if self.images is None:
                raise EvaluationError("this task has no image folder")
            if question.video is not None:
                raise EvaluationError(f"{question.place}: asks about a video, and this model takes images alone")
            return load_image(self.images, question.image or "", trusted=self.settings.trusted)
        except SampleError as error:
            raise EvaluationError(f"{question.place or f'question {question.id!r}'}: {error}") from error

    def read_video(self, question: Question) -> Video:
        """Frames of the question's video."""
        if self.images is None:
            raise EvaluationError("this task has no folder of videos")
        folder = VideoFolder(str(self.images), self.settings.frames, trusted=tuple(self.settings.trusted))
        try:
            video = folder.read(question.video or "")
        except SampleError as error:
            raise EvaluationError(f"{question.place or f'question {question.id!r}'}: {error}") from error
        flipped = self.settings.flip == "random" and is_flipped(question.video or "")
        return video.mirrored() if flipped else video


class TemplatePrompter(Prompter):
    """Token ids and pixels as LLaVA makes them, for models whose images have a fixed number of placeholders.

    Args:
        processor: its tokenizer and image processor are used.
        settings, images: see `Prompter`.
        image: the placeholder.
        places: placeholders of an image.
    """

    def __init__(
        self, processor: Any, settings: EvaluationSettings, images: Path | None, image: int, places: int
    ) -> None:
        super().__init__(processor, settings, images)
        self.preprocess = ImagePreprocessor(processor.image_processor, aspect=settings.aspect)
        self.image, self.places, self.template = image, places, asked_with(settings.template, processor)

    def ids(self, question: Question) -> list[int]:
        """By the template of the settings, or that of the model's training."""
        text = prompt(self.template, question.text, images=int(question.has_image))
        return encode(self.tokenizer, text, self.image, 1)

    def begun(self) -> list[list[int]]:
        """All of them."""
        return list(self.encoded.values())

    def whole(self, question: Question) -> list[int]:
        """The same with as many placeholders as the model expects."""
        ids = self.encode(question)
        if not question.has_image:
            return ids
        at = ids.index(self.image)
        return [*ids[:at], *[self.image] * self.places, *ids[at + 1 :]]

    def pictures(self, questions: Sequence[Question]) -> Pictures | None:
        """The images of a batch, one per question, equal ones read once; None for a batch without images."""
        if not questions[0].has_image:
            return None
        first: dict[str | None, int] = {}
        index = [first.setdefault(picture_of(question), len(first)) for question in questions]
        firsts = [questions[index.index(at)] for at in range(len(first))]
        return Pictures(self.preprocess(self.read_image(question) for question in firsts), torch.tensor(index))

    def inputs(
        self, questions: Sequence[Question], pictures: Pictures | None, start: Sequence[int]
    ) -> dict[str, Tensor]:
        """input_ids [B, L], attention_mask, pixel_values [U, 3, S, S], and image_index [B] where images are shared."""
        made = self.collate([self.whole(question) for question in questions], start)
        if pictures is not None:
            made["pixel_values"] = pictures.pixels
            if len(pictures.pixels) < len(questions):
                made["image_index"] = pictures.index
        return made

    def collate(self, rows: Sequence[list[int]], start: Sequence[int] = ()) -> dict[str, Tensor]:
        """Ids and their mask, [B, L] each: the start that all rows have, padding, and what follows it in each row."""
        ahead, rests = list(start), [row[len(start) :] for row in rows]
        length = max(map(len, rests))
        ids = torch.tensor([ahead + [self.padding] * (length - len(rest)) + rest for rest in rests])
        mask = torch.tensor([[1] * len(ahead) + [0] * (length - len(rest)) + [1] * len(rest) for rest in rests])
        return {"input_ids": ids, "attention_mask": mask}


class ChatPrompter(Prompter):
    """What the processor of another family makes of questions.

    Args:
        processor, settings, images: see `Prompter`.
        config: the model's.
    """

    def __init__(self, processor: Any, settings: EvaluationSettings, images: Path | None, config: Any) -> None:
        self.chat = ChatProcessor(processor, config, settings.template)
        super().__init__(processor, settings, images)

    def ids(self, question: Question) -> list[int]:
        """By its chat template; for batches of similar lengths alone."""
        return self.chat.ids(question.text, int(question.has_image), "image" if question.video is None else "video")

    def pictures(self, questions: Sequence[Question]) -> dict[str, Tensor] | None:
        """The whole batch: a processor makes text and pixels together."""
        if not questions[0].has_image:
            return None
        return self.chat([(question.text, [self.read(question)]) for question in questions])

    def read(self, question: Question) -> Image | Video:
        """What the question is about."""
        return self.read_image(question) if question.video is None else self.read_video(question)

    def inputs(self, questions: Sequence[Question], pictures: Any, start: Sequence[int]) -> dict[str, Tensor]:
        """What was made of the images, or the text of a batch without."""
        return self.chat([(question.text, []) for question in questions]) if pictures is None else pictures


def make_prompter(processor: Any, config: Any, settings: EvaluationSettings, images: Path | None) -> Prompter:
    """The one that goes with a model.

    Args:
        processor, config: of the model.
        settings, images: see `Prompter`.
    """
    check_processor(processor, config)
    places = fixed_places(config)
    if places is None:
        return ChatPrompter(processor, settings, images, config)
    return TemplatePrompter(processor, settings, images, config.image_token_id, places)


def on_device(inputs: dict[str, Tensor], model: Any) -> dict[str, Any]:
    """A batch where the model is, its pixels in the model's precision."""
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def picture_of(question: Question) -> str | None:
    """What two questions about one image or video have in common: its path, or its content."""
    return question.embedded or question.image or question.video
