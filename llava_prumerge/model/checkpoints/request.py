"""What a conversion is asked to do, and what it has made so far of the answer: a whole model, or its trained parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_prumerge.ground.public import public_name, without_private
from llava_prumerge.model.adapters import Base
from llava_prumerge.model.checkpoints.plan import Entry, Named
from llava_prumerge.model.checkpoints.weights import Stored
from llava_prumerge.model.checkpoints.writing import SHARD_BYTES
from llava_prumerge.model.configuration import PruMergeLlavaConfig

RECORD_FILE = "conversion.json"


@dataclass(frozen=True)
class Request:
    """One conversion.

    Attributes:
        source: the folder or file to convert.
        target: the folder to make; None in a dry run.
        to: the layout to write: ours, original or llava-hf.
        vision_tower: folder of the CLIP, for layouts without vision weights.
        language_model: folder of the base of adapters or of a projector.
        missing_from: a folder in the source's layout whose files stand in for those the source lacks.
        reduction: the block for config.json, {} for none; None keeps what the source says.
        with_vision: the original layout gets the tower's weights too.
        keep_rows: the original layout keeps the vocabulary's rows beyond its own tokens.
        merge: put adapters and projector into their base and write a whole model.
        dtype: of all weights; None leaves each as it is stored.
        open_clip_model: an architecture's name or the file of its configuration, for an open_clip checkpoint without one.
        shard_bytes: a shard's size at most.
        dry_run: plan alone; weights need not be there.
    """

    source: Path
    target: Path | None = None
    to: str = "ours"
    vision_tower: Path | None = None
    language_model: Path | None = None
    missing_from: Path | None = None
    reduction: dict[str, Any] | None = None
    with_vision: bool = False
    keep_rows: bool = False
    merge: bool = False
    dtype: torch.dtype | None = None
    open_clip_model: str | None = None
    shard_bytes: int = SHARD_BYTES
    dry_run: bool = False


@dataclass
class Record:
    """Where a result came from; written beside it as conversion.json, and read by the way back.

    Attributes:
        taken: what the source lacks -> where it was taken from.
        original_config: config.json of the original layout, so that the way back gives it again.
        original_tokenizer: likewise tokenizer_config.json, beside a tokenizer.model.
    """

    source: str
    layout: str
    vision_tower: str | None = None
    taken: dict[str, str] = field(default_factory=dict)
    original_config: dict[str, Any] | None = None
    original_tokenizer: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        """What is written: the folders by their names, as their paths mean nothing elsewhere."""
        values = without_private(dataclasses.asdict(self))
        taken = {what: public_name(where) for what, where in self.taken.items()}
        return values | {"source": public_name(self.source), "taken": taken}


@dataclass
class Whole:
    """A complete model: every parameter by its name in ours, and what goes beside the weights.

    Attributes:
        tokenizer: with the image and padding tokens.
        image_processor: None in a dry run from configurations alone.
        tokenizer_folder: where the tokenizer's files are.
    """

    found: Named
    config: PruMergeLlavaConfig
    tokenizer: Any
    image_processor: Any
    tokenizer_folder: Path | None
    record: Record


@dataclass
class Parts:
    """Trained parts without their base.

    Attributes:
        adapter: LoRA matrices by their names in our model, `...q_proj.lora_A.weight`.
        settings: the adapters' adapter_config.json, empty where there are none.
        projector: by the parameters' names.
        method: likewise, the reducer's and pruner's.
        base: None for a projector whose base was not named.
        whole: configuration, tokenizer and image processor of the model they belong to, with the base's weights where they are needed.
    """

    adapter: dict[str, Stored]
    settings: dict[str, Any]
    projector: Named
    method: dict[str, Entry]
    base: Base | None
    whole: Whole | None
    record: Record
