"""The `key=value` settings of generation, typed and checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_prumerge.data.recipe_data import FRAMES, MOST_FRAMES
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.ground.naming import not_known, shown
from llava_prumerge.methods.resolve import is_setting, read_value
from llava_prumerge.ops.errors import ReductionError

TRAINED = ("none", "method", "projector", "lora", "full")
MOST = {
    "batch_size": 100_000,
    "max_new_tokens": 1_000_000,
    "workers": 1024,
    "frames": MOST_FRAMES,
    "limit": 10**12,
    "tower_cache_gb": 1_000_000,
}
CHOICES = {
    "images": ("on", "off"),
    "aspect": ("pad", "square"),
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "flip": ("none", "random"),
}


@dataclass(frozen=True)
class EvaluationSettings:
    """How answers are made, and how the result is called.

    Attributes:
        method: a method by name, file or block (see `methods.resolve`), or "none"; None takes what the checkpoint says.
        overrides: its settings: `budget=40`, `reduction.vision.budget=40` and the like, on top of the method or of the
            checkpoint's block.
        plugin: modules or files that register methods, with commas between.
        batch_size: questions per batch.
        dtype: of the weights; "auto" is float16 on a GPU, as LLaVA evaluates, and float32 on CPU.
        device: such as cuda:0; a GPU if there is one.
        attn: attention implementation; transformers chooses for None.
        template: conversation template.
        aspect: "pad" to a square (LLaVA-1.5) or "square" to crop.
        images: "off" asks the same questions without images, the text-only baseline.
        max_new_tokens: the task's own limit for None.
        limit: only the first so many questions, for trials.
        frames: taken of a video, evenly spaced from the first to the last.
        flip: "random" mirrors half of the videos, as Video-LLaVA's released evaluation does; by a hash of their path.
        workers: threads that read images.
        tower_cache: folder that keeps what the vision tower makes of each image; None: the tower runs each time.
        tower_cache_gb: gigabytes that it may hold.
        trusted: folders that links in the image folder may lead to.
        accept_changes: fields of an answer file's header that may differ from this run's.
        model_label: how tables call the model; its folder's name for None.
        label: how tables call the row; the method with its settings for None.
        train: how the weights learnt the method: none (training-free), method, projector, lora, full.
    """

    method: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plugin: str | None = None
    batch_size: int = 16
    dtype: str = "auto"
    device: str | None = None
    attn: str | None = None
    template: str = "vicuna_v1"
    aspect: str = "pad"
    images: str = "on"
    max_new_tokens: int | None = None
    limit: int | None = None
    frames: int = FRAMES
    flip: str = "none"
    workers: int = 4
    tower_cache: str | None = None
    tower_cache_gb: int = 20
    trusted: tuple[str, ...] = ()
    accept_changes: tuple[str, ...] = ()
    model_label: str | None = None
    label: str | None = None
    train: str | None = None


SETTING_NAMES = tuple(field.name for field in dataclasses.fields(EvaluationSettings) if field.name != "overrides")
"""What can be set by name; beside these, the method's settings."""


def parse_generation(values: Mapping[str, str]) -> EvaluationSettings:
    """Typed settings from text; a key that neither an evaluation nor any method has is an error that names the known ones."""
    typed: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for key, value in values.items():
        if key not in SETTING_NAMES:
            overrides[key] = method_setting(key, value, values.get("plugin"))
        elif key in MOST:
            typed[key] = whole_number(key, value)
        elif key == "accept_changes":
            typed[key] = tuple(field.strip() for field in value.split(",") if field.strip())
        elif key == "trusted":
            typed[key] = read_trusted(value)
        else:
            typed[key] = value
    for key, accepted in {**CHOICES, "train": TRAINED}.items():
        if key in typed and typed[key] not in accepted:
            raise EvaluationError(f"{key} must be one of {', '.join(accepted)}, not {typed[key]!r}")
    return EvaluationSettings(**typed, overrides=overrides)


def read_trusted(value: str) -> tuple[str, ...]:
    """Folders, with commas between."""
    from llava_prumerge.data.image_paths import TrustError, trusted_folders

    try:
        return trusted_folders([folder.strip() for folder in value.split(",") if folder.strip()])
    except TrustError as error:
        raise EvaluationError(str(error)) from error


def method_setting(key: str, text: str, plugin: str | None) -> Any:
    """The value of a key that is no setting of an evaluation, where a method may have it."""
    try:
        plugins = None if plugin is None else plugin.split(",")
        if not is_setting(key, plugins):
            listed = [*SETTING_NAMES, "budget and the method's other settings"]
            raise EvaluationError(not_known("setting", key, listed))
        return read_value(key, text)
    except ReductionError as error:
        raise EvaluationError(str(error)) from error


def whole_number(name: str, value: str) -> int:
    """A setting that must be a positive whole number."""
    most = MOST.get(name, MOST["limit"])
    if not re.fullmatch("0*[0-9]{1,18}", value) or not 1 <= int(value) <= most:
        raise EvaluationError(f"{name} must be a whole number from 1 to {most:,}, not {shown(value)}")
    return int(value)
