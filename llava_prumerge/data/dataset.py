"""LLaVA's records as a dataset: rows stay on disk, tokens and pixels are made when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from llava_prumerge.data.conversation import Places, encode_training
from llava_prumerge.data.image_paths import ImageError, trusted_folders
from llava_prumerge.data.images import MAX_PIXELS, ImagePreprocessor, load_image
from llava_prumerge.data.processed_images import ProcessedImages
from llava_prumerge.data.records import NO_VIDEOS, RecordError, open_records
from llava_prumerge.data.rounds import media_order
from llava_prumerge.data.videos import VideoError, VideoFolder
from llava_prumerge.ground.errors import InputError
from llava_prumerge.text.chat_templates import ChatTemplate, resolve_template
from llava_prumerge.text.templates import Template

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase


class LlavaDataset(Dataset):
    """Items: `input_ids`, `labels` [L], `id`, and when the sample has images `pixel_values` [n, 3, S, S].

    Of models whose images have sizes of their own, what their processor makes of images and of ids in the place of that.

    Args:
        json_path: `.json` or `.jsonl` in LLaVA's format.
        image_folder: what the records' image paths are relative to.
        tokenizer: a fast tokenizer.
        preprocessor: images to pixels; or a model's own processor, which also says what stands for them.
        template: name or template.
        image_token_id: the placeholder's id.
        image_tokens: placeholders per image; with a processor of the model's own an estimate, for `lengths`.
        max_length: sequences are cut here, placeholders counted.
        max_pixels: larger images are refused.
        trusted: folders that links in the image folder may lead to.
        videos: where the records' videos lie and how they are read; None: the model takes none.
        video_token_id: the placeholder of a video.
        cache_dir: where the Arrow file goes; `default_cache_dir()` when None.

    Raises:
        RecordError, MaskError, ImageError: from an item, with the sample's id. Nothing is skipped or replaced here; that
            is `quarantine.QuarantiningDataset`'s.
    """

    def __init__(
        self,
        json_path: str | os.PathLike[str],
        image_folder: str | os.PathLike[str],
        tokenizer: PreTrainedTokenizerBase,
        preprocessor: ImagePreprocessor | ProcessedImages,
        template: str | Template | ChatTemplate,
        *,
        image_token_id: int,
        image_tokens: int,
        max_length: int | None = 2048,
        max_pixels: int = MAX_PIXELS,
        trusted: Sequence[str | os.PathLike[str]] = (),
        videos: VideoFolder | None = None,
        video_token_id: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.rows = open_records(json_path, cache_dir)
        if not len(self.rows):
            raise InputError(f"{os.fspath(json_path)} holds no records")
        self.image_folder = image_folder
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.template = resolve_template(template, tokenizer)
        self.image_token_id = image_token_id
        self.image_tokens = image_tokens
        self.max_length = max_length
        self.max_pixels = max_pixels
        self.trusted = trusted_folders(trusted)
        self.videos, self.video_token_id = videos, video_token_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.rows[int(index)]
        if record["fault"] is not None:
            raise RecordError(record["fault"], record["id"])
        if record["video"] and (self.videos is None or not isinstance(self.preprocessor, ProcessedImages)):
            raise RecordError(NO_VIDEOS, record["id"])
        if isinstance(self.preprocessor, ProcessedImages):
            return self._processed(record, self.preprocessor)
        item = self._encoded(record, self.image_tokens)
        if record["image"]:
            with self._naming(record):
                item["pixel_values"] = self.preprocessor(self._images(record))  # [n, 3, S, S]
        return item

    def _processed(self, record: dict[str, Any], processed: ProcessedImages) -> dict[str, Any]:
        """An item whose images say how many places they take."""
        tensors: dict[str, torch.Tensor] = {}
        texts: dict[str, list[str]] = {}
        if record["image"] or record["video"]:
            with self._naming(record):
                videos = [] if self.videos is None else [self.videos.read(path) for path in record["video"]]
                tensors, texts = processed(list(self._images(record)), videos, media_order(record))
        item = self._encoded(record, texts)
        return item | processed.beside(item["input_ids"], item["labels"]) | tensors

    def _encoded(self, record: dict[str, Any], places: Places) -> dict[str, Any]:
        encoded = encode_training(
            self.tokenizer, record, self.template, self.image_token_id, places, self.max_length, self.video_token_id
        )
        return {key: torch.tensor(value) for key, value in encoded.items()} | {"id": record["id"]}

    def _images(self, record: dict[str, Any]) -> Iterator[Image]:
        return (load_image(self.image_folder, path, self.max_pixels, self.trusted) for path in record["image"])

    @contextmanager
    def _naming(self, record: dict[str, Any]) -> Iterator[None]:
        """Errors of images and videos name the sample."""
        try:
            yield
        except (ImageError, VideoError) as error:
            raise type(error)(error.reason, record["id"]) from error

    @property
    def lengths(self) -> list[int]:
        """Estimated length of every sample, negative without images and videos, for `GroupedSampler`.

        A token is taken as four bytes of text, plus `image_tokens` per image, and what a typical video takes. LLaVA counts words, which sees neither
        a second image nor the length of a Chinese paragraph.
        """
        columns = self.rows.select_columns(["images", "videos", "text_bytes"]).with_format("numpy")[:]
        images, videos, text = (columns[name].astype(int) for name in ("images", "videos", "text_bytes"))
        tokens = text // 4 + 1 + images * self.image_tokens
        if self.videos is not None and videos.any() and isinstance(self.preprocessor, ProcessedImages):
            tokens += videos * self.preprocessor.typical_video_places(self.videos.frames)
        return [int(n) if has else -int(n) for n, has in zip(tokens, images + videos > 0, strict=True)]
