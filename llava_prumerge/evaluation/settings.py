"""The `key=value` settings of generation, typed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.ground import shipped
from llava_prumerge.ground.naming import not_known

TRAINED = ("none", "projector", "lora", "full")
CHOICES = {"images": ("on", "off"), "aspect": ("pad", "square"), "dtype": ("auto", "float32", "float16", "bfloat16")}
SITES = ("vision", "decoder")


@dataclass(frozen=True)
class Settings:
    """How answers are made, and how the result is called.

    Attributes:
        method: a method file, the name of one that ships, or "none"; None takes what the checkpoint says.
        overrides: `reduction.vision.budget=40` (or `budget=40`) and the like, on top of the method file or the
            checkpoint's block.
        batch_size: questions per batch.
        dtype: of the weights; "auto" is float16 on a GPU, as LLaVA evaluates, and float32 on CPU.
        device: such as cuda:0; a GPU if there is one.
        attn: attention implementation; transformers chooses for None.
        template: conversation template.
        aspect: "pad" to a square (LLaVA-1.5) or "square" to crop.
        images: "off" asks the same questions without images, the text-only baseline.
        max_new_tokens: the task's own limit for None.
        limit: only the first so many questions, for trials.
        workers: threads that read images.
        trusted: folders that links in the image folder may lead to.
        model_label: how tables call the model; its folder's name for None.
        label: how tables call the row; the method with its settings for None.
        train: how the weights learnt the method: none (training-free), projector, lora, full.
    """

    method: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    dtype: str = "auto"
    device: str | None = None
    attn: str | None = None
    template: str = "vicuna_v1"
    aspect: str = "pad"
    images: str = "on"
    max_new_tokens: int | None = None
    limit: int | None = None
    workers: int = 4
    trusted: tuple[str, ...] = ()
    model_label: str | None = None
    label: str | None = None
    train: str | None = None


SETTING_NAMES = (*(field.name for field in dataclasses.fields(Settings) if field.name != "overrides"), "budget")
"""What can be set by name; beside these, `reduction.vision.NAME` and `reduction.decoder.NAME`."""


def parse_generation(values: Mapping[str, str]) -> Settings:
    """Typed settings from text; an unknown key is an error that names the known ones."""
    typed: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for key, value in values.items():
        if key == "budget":
            overrides["vision.budget"] = whole_number(key, value)
        elif key.startswith("reduction."):
            overrides[key.removeprefix("reduction.")] = parse_yaml(key, value)
        elif key not in SETTING_NAMES:
            raise EvaluationError(
                not_known("setting", key, [*SETTING_NAMES, "reduction.vision.*", "reduction.decoder.*"])
            )
        elif key in ("batch_size", "max_new_tokens", "limit", "workers"):
            typed[key] = whole_number(key, value)
        elif key == "trusted":
            typed[key] = read_trusted(value)
        else:
            typed[key] = value
    for key, accepted in {**CHOICES, "train": TRAINED}.items():
        if key in typed and typed[key] not in accepted:
            raise EvaluationError(f"{key} must be one of {', '.join(accepted)}, not {typed[key]!r}")
    return Settings(**typed, overrides=overrides)


def read_trusted(value: str) -> tuple[str, ...]:
    """Folders, with commas between."""
    from llava_prumerge.data.image_paths import TrustError, trusted_folders

    try:
        return trusted_folders([folder.strip() for folder in value.split(",") if folder.strip()])
    except TrustError as error:
        raise EvaluationError(str(error)) from error


def whole_number(name: str, value: str) -> int:
    """A setting that must be a positive whole number."""
    if not value.isdecimal() or int(value) < 1:
        raise EvaluationError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)


def parse_yaml(name: str, value: str) -> Any:
    """A value written in YAML."""
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise EvaluationError(f"{name}: {value!r} is not YAML: {error}") from error


def read_method(method: str | None) -> dict[str, Any] | None:
    """The reduction block of a method file; {} for "none"; None (what the checkpoint says) for None."""
    if method is None or method == "none":
        return None if method is None else {}
    path = shipped.require("method", method, "method")
    content = parse_yaml(f"method={method}", path.read_text("utf-8")) or {}
    block = content.get("reduction", content) if isinstance(content, dict) else content
    if not isinstance(block, dict) or not set(block) <= set(SITES):
        raise EvaluationError(f"method={method}: expected the keys {' and '.join(SITES)}, found {content!r}")
    return {site: part for site, part in block.items() if part}


def apply_overrides(block: Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A reduction block with single settings replaced, such as {"vision.budget": 40}."""
    result = {site: dict(part) for site, part in (block or {}).items() if part}
    for key, value in overrides.items():
        site, _, name = key.partition(".")
        if site not in SITES or not name or "." in name:
            raise EvaluationError(f"reduction.{key}: expected reduction.vision.NAME or reduction.decoder.NAME")
        result.setdefault(site, {})[name] = value
    unnamed = [site for site, part in result.items() if "name" not in part]
    if unnamed:
        raise EvaluationError(
            f"reduction.{unnamed[0]} has settings but no method; add method=FILE or reduction.{unnamed[0]}.name="
        )
    return result
