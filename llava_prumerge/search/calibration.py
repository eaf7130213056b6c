"""Calibration questions: a few pairs of a file in LLaVA's format as batches, and the model that they are asked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.collator import Collator
from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.data.image_paths import trusted_folders
from llava_prumerge.data.images import ImagePreprocessor, load_image
from llava_prumerge.data.record_files import read_records
from llava_prumerge.model.chat import ChatProcessor, check_processor, fixed_places
from llava_prumerge.model.loading import load_model
from llava_prumerge.search.command import SearchError
from llava_prumerge.text.chat_templates import asked_with

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaProcessor

    from llava_prumerge.model.configuration import PruMergeLlavaConfig
    from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration


@dataclass(frozen=True)
class Pair:
    """A question and its image, a path below the image folder."""

    question: str
    image: str


def read_pairs(path: str | os.PathLike[str], number: int) -> list[Pair]:
    """So many questions about an image, evenly spread over a file of `image` and `text` records (.jsonl or .json).

    Raises:
        SearchError: the file is missing or holds no such record.
    """
    if not Path(path).is_file():
        raise SearchError(f"{path}: no such file")
    if number < 1:
        raise SearchError(f"{number} questions are too few; take 1 or more")
    records = [record for record in read_records(path) if isinstance(record, dict)]
    found = [Pair(record["text"], record["image"]) for record in records if record.get("image") and "text" in record]
    if not found:
        raise SearchError(f"{path} holds no record with an image and a text")
    number = min(number, len(found))
    return [found[at * len(found) // number] for at in range(number)]


def make_batches(
    pairs: Sequence[Pair],
    images: str | os.PathLike[str],
    processor: LlavaProcessor,
    config: PruMergeLlavaConfig,
    size: int,
    template: str = "vicuna_v1",
    aspect: str = "pad",
    trusted: Sequence[str] = (),
) -> list[dict[str, Tensor]]:
    """Left-padded prompts [B, L] with what their images are made of, as the evaluation asks them.

    Args:
        pairs: what is asked.
        images: the folder of the images.
        processor, config: of the model.
        size: pairs per batch.
        template: conversation template.
        aspect: "pad" to a square (LLaVA-1.5) or "square" to crop.
        trusted: folders that links in the image folder may lead to.
    """
    check_processor(processor, config)
    places, groups = fixed_places(config), [pairs[start : start + size] for start in range(0, len(pairs), size)]
    read = lambda pair: load_image(images, pair.image, trusted=trusted)  # noqa: E731
    if places is None:
        chat = ChatProcessor(processor, config, template)
        return [chat([(pair.question, [read(pair)]) for pair in group]) for group in groups]
    preprocess = ImagePreprocessor(processor.image_processor, aspect=aspect)
    collate = Collator(processor.tokenizer.pad_token_id or 0, "left")
    items: list[dict[str, Any]] = []
    for pair in pairs:
        text = prompt(asked_with(template, processor), pair.question)
        ids = encode(processor.tokenizer, text, config.image_token_id, places)
        items.append({"input_ids": ids, "pixel_values": preprocess([read(pair)])})
    batches = [collate(items[start : start + size]) for start in range(0, len(items), size)]
    return [{name: value for name, value in batch.items() if name != "ids"} for batch in batches]


def prepare(given: argparse.Namespace) -> tuple[PruMergeLlavaForConditionalGeneration, list[dict[str, Tensor]], int]:
    """The model, the batches and the number of questions that a command line asks for."""
    pairs = read_pairs(given.questions, given.samples)
    trusted = trusted_folders(given.trusted)
    model, processor = load_model(given.model, dtype=given.dtype, device=given.device)
    batches = make_batches(
        pairs, given.images, processor, model.config, given.batch_size, given.template, trusted=trusted
    )
    return model, batches, len(pairs)
