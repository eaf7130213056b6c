"""Regions of images and what they show, as a dataset: what `objective=regions` trains a projector on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.data.records import RecordError
from llava_prumerge.ground.errors import InputError

logger = logging.getLogger(__name__)


class RegionDataset(LlavaDataset):
    """Items: `pixel_values` [1, 3, S, S], `boxes` [R, 4], `input_ids` [T] of all regions' texts, `region_of` [T], `id`.

    `boxes` are left, top, right and bottom as fractions of the tower's input; `region_of` says which region a token belongs to,
    counted from 1. A record without regions in it has one token that belongs to none. Records without image are left out.

    Raises:
        RecordError, ImageError: from an item, as `LlavaDataset`; also where a record has no or malformed `regions`, or not one
            image.
    """

    preprocessor: ImagePreprocessor

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        columns = self.rows.select_columns(["images", "videos", "fault"]).with_format("arrow")[:]
        shows = np.logical_or(columns["images"].to_numpy() > 0, columns["videos"].to_numpy() > 0)
        kept = np.flatnonzero(shows | ~columns["fault"].is_null().to_numpy())
        if not len(kept):
            raise InputError("no record has an image")
        if len(kept) < len(self.rows):  # of a mix for stage 2: sound, but nothing for this objective
            logger.info("%d records are text alone and left out", len(self.rows) - len(kept))
            self.rows = self.rows.select(kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.rows[int(index)]
        if record["fault"] is not None:
            raise RecordError(record["fault"], record["id"])
        if len(record["image"]) != 1 or record["video"]:
            raise RecordError("regions: they are of one image, and the record has another number", record["id"])
        with self._naming(record):
            image = next(self._images(record))
            pixels = self.preprocessor([image])
        ids = self.texts(record)
        boxes = [self.preprocessor.locate(image.size, region["box"]) for region in record["regions"]]
        region_of = [number for number, tokens in enumerate(ids, start=1) for _ in tokens]
        return {
            "id": record["id"],
            "pixel_values": pixels,
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "input_ids": torch.tensor([token for tokens in ids for token in tokens] or [0]),
            "region_of": torch.tensor(region_of or [0]),
        }

    def texts(self, record: Mapping[str, Any]) -> list[list[int]]:
        """Token ids of each region's text, without control tokens.

        Raises:
            RecordError: the record has no regions, or a text has no tokens.
        """
        if record["regions"] is None:
            none = "regions: the record has none; one whose image shows nothing says []"
            raise RecordError(
                next((note for note in record["notes"] if note.startswith("regions: ")), none), record["id"]
            )
        ids = [
            self.tokenizer(region["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for region in record["regions"]
        ]
        if not all(ids):
            raise RecordError("regions: a text has no tokens", record["id"])
        return ids

    def mean_square(self, embeddings: Tensor, most: int = 512) -> float:
        """The mean square of what patches are to become, over the regions of records spread evenly over the file.

        Args:
            embeddings: [V, D] of the vocabulary.
            most: records that are looked at.

        Raises:
            InputError: none of them has a region.
        """
        total, count = 0.0, 0
        for number in range(min(most, len(self))):
            record = self.rows[number * len(self) // min(most, len(self))]
            try:
                texts = self.texts(record)
            except RecordError:  # set aside when its turn comes
                continue
            for ids in texts:
                total += embeddings[torch.tensor(ids)].float().mean(dim=0).square().mean().item()
                count += 1
        if not count or not total or not math.isfinite(total):
            raise InputError("objective=regions: no record that was looked at has a region with a text")
        return total / count
