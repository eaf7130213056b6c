"""The check of one record, by the code that training reads it with: format, turns, loss mask, length, images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llava_prumerge
from llava_prumerge.data.conversation import (
    IGNORE_INDEX,
    MaskError,
    Places,
    describe_record,
    encode_training,
    truncate,
)
from llava_prumerge.data.image_paths import ImageError, contained_path, renamed_image
from llava_prumerge.data.images import decode_image, describe_file
from llava_prumerge.data.records import NO_VIDEOS, RecordError
from llava_prumerge.data.rounds import media_order
from llava_prumerge.data.videos import Video, VideoError, VideoFolder
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import shown

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

    from llava_prumerge.data.processed_images import ProcessedImages
    from llava_prumerge.text.chat_templates import ChatTemplate
    from llava_prumerge.text.templates import Template

# Any id outside the vocabulary will do, as no model sees it.
_PLACEHOLDER = -200


class CheckError(InputError):
    """A check that cannot be made; the message is one line."""


@dataclass(frozen=True)
class Finding:
    """One thing to say about a record; `bad` makes the check fail."""

    kind: str
    sample_id: str
    index: int
    detail: str
    bad: bool = True


@dataclass(frozen=True)
class Checked:
    """What became of one record."""

    findings: tuple[Finding, ...]
    images: int = 0
    tokens: int = 0
    supervised: int = 0
    videos: int = 0

    @property
    def bad(self) -> bool:
        return any(finding.bad for finding in self.findings)


@dataclass(frozen=True)
class Checker:
    """Checks single records; plain values only, so that it travels to worker processes.

    Args:
        images: the image folder.
        tokenizer_path: folder of a tokenizer.
        template: the conversation template's name.
        image_tokens: placeholders per image.
        max_length: longer samples are cut, which is noted.
        trusted: folders that links in the image folder may lead to.
        model: folder of a model of a family that says itself what stands for an image; "" for LLaVA-1.5 and its kin.
        videos: the video folder.
        frames: taken of each video.
    """

    images: str
    tokenizer_path: str
    template: str
    image_tokens: int
    max_length: int
    trusted: tuple[str, ...] = ()
    model: str = ""
    videos: str = ""
    frames: int = 8

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self.reader is not None:
            return self.reader.processor.tokenizer
        from llava_prumerge.text.tokenizers import TokenizerError, add_image_tokens, load_tokenizer

        try:
            tokenizer = load_tokenizer(self.tokenizer_path)
        except TokenizerError as error:
            raise CheckError(str(error)) from None
        add_image_tokens(
            tokenizer
        )  # as a model has it that is put together from its parts: text that holds one is refused
        return tokenizer

    @cached_property
    def written_in(self) -> Template | ChatTemplate:
        """The template itself."""
        if self.reader is not None:
            return self.reader.template
        from llava_prumerge.text.chat_templates import resolve_template

        try:
            return resolve_template(self.template, self.tokenizer)
        except InputError as error:
            raise CheckError(f"template={self.template}: {error}") from None

    @cached_property
    def reader(self) -> Any:
        """How the model reads conversations, a `model.reading.Reader`; None without one."""
        if not self.model:
            return None
        try:
            return llava_prumerge.load_reader(self.model, self.template)
        except InputError as error:
            raise CheckError(str(error)) from None

    @cached_property
    def processed(self) -> ProcessedImages | None:
        """Its processor, as training calls it."""
        if self.reader is None:
            return None
        from llava_prumerge.data.processed_images import ProcessedImages  # which imports torch

        return ProcessedImages(self.reader.processor, self.reader.beside)

    @property
    def video_folder(self) -> VideoFolder:
        """Where the records' videos lie."""
        return VideoFolder(self.videos or self.images, self.frames, trusted=self.trusted)

    def __call__(self, index: int, row: Mapping[str, Any]) -> Checked:
        """Args: a record's place in its file, and its row of `open_records`."""
        if row["fault"] is not None:
            return Checked((Finding(RecordError(row["fault"]).kind, row["id"], index, row["fault"]),))
        if row["video"] and (self.reader is None or not self.reader.takes_videos):
            return Checked((Finding("video", row["id"], index, NO_VIDEOS),))
        found = [Finding(note.split(":", 1)[0], row["id"], index, note, bad=False) for note in row["notes"]]
        images: list[Image] = []
        for path in row["image"]:
            found += self._check_image(path, row["id"], index, images)
        videos: list[Video] = []
        for path in row["video"]:
            found += self._check_video(path, row["id"], index, videos)
        whole = len(images) == len(row["image"]) and len(videos) == len(row["video"])
        text, tokens, supervised = self._check_text(row, index, self._places(row, images, videos, whole))
        return Checked((*text, *found), len(row["image"]), tokens, supervised, len(row["video"]))

    def _places(self, row: Mapping[str, Any], images: list[Image], videos: list[Video], whole: bool) -> Places:
        """What stands for the record's images and videos; where some cannot be read, one token for each."""
        if self.processed is None:
            return self.image_tokens
        processor = self.reader.processor
        if whole and (images or videos):
            return self.processed(images, videos, media_order(row))[1]
        markers = {"image": processor.image_token, "video": getattr(processor, "video_token", None)}
        return {marker: [marker] * len(row[kind]) for kind, marker in markers.items() if marker is not None}

    def _check_text(self, row: Mapping[str, Any], index: int, places: Places) -> tuple[list[Finding], int, int]:
        image, video = _PLACEHOLDER, None
        if self.reader is not None:
            image, video = self.reader.image_token_id, self.reader.video_token_id
        try:
            encoded = encode_training(self.tokenizer, row, self.written_in, image, places)
            ids, labels = truncate(encoded["input_ids"], encoded["labels"], (image, video), self.max_length)
        except MaskError as error:
            return [Finding(error.kind, row["id"], index, error.reason)], 0, 0
        notes = describe_record(self.tokenizer, row, self.written_in)
        found = [Finding(kind, row["id"], index, f"{kind}: {words}", bad=False) for kind, words in notes]
        full = len(encoded["input_ids"])
        if len(ids) < full:
            detail = f"cut to length: {full} tokens, max_length {self.max_length}"
            found.append(Finding("cut to length", row["id"], index, detail, bad=False))
        return found, len(ids), sum(label != IGNORE_INDEX for label in labels)

    def _check_video(self, path: str, sample_id: str, index: int, read: list[Video]) -> list[Finding]:
        """Also puts the video to those that were read."""
        try:
            read.append(self.video_folder.read(path))
        except (ImageError, VideoError) as error:
            return [Finding(error.kind, sample_id, index, error.reason)]
        except InputError as error:  # no matter of the record: nothing can be decoded here
            raise CheckError(str(error)) from None
        return []

    def _check_image(self, path: str, sample_id: str, index: int, read: list[Image]) -> list[Finding]:
        """Also puts the image to those that were read."""
        try:
            file = contained_path(self.images, path, self.trusted)
            read.append(decode_image(file, shown(path)))
        except ImageError as error:
            if error.kind == "missing" and (other := renamed_image(self.images, path, self.trusted)):
                detail = f"wrong extension: {path!r} is missing, {other!r} is there; rename it"
                return [Finding("wrong extension", sample_id, index, detail)]
            return [Finding(error.kind, sample_id, index, error.reason)]
        return [
            Finding(kind, sample_id, index, f"{kind}: {path!r} {words}", bad=False)
            for kind, words in describe_file(file)
        ]
