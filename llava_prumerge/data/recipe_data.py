"""What a recipe says of its data: the few keys that decide whether its records can be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llava_prumerge
from llava_prumerge.data.recipe import REDUCTION_KEYS, RecipeError, read_names, read_recipe
from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.hub_names import is_hub_name, why_missing
from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.text.hub_files import folder_of

KEYS = (
    "data",
    "images",
    "videos",
    "frames",
    "trusted",
    "template",
    "max_length",
    "model",
    "language_model",
    "vision_tower",
)
LONGEST = 10_000_000
"""Tokens that `max_length` may ask for."""
FRAMES, MOST_FRAMES = 8, 1024
"""Of a video: by default, and the most that `frames` may ask for."""
_OPEN_CLIP = "open_clip_config.json"


@dataclass(frozen=True)
class RecipeData:
    """What a record file is checked against; None where the recipe leaves it open.

    Args:
        data: the record file.
        images: the image folder.
        trusted: folders that links in it may lead to.
        tokenizer: folder of the tokenizer.
        backbone: folder whose config.json tells the placeholders per image: a whole model or a vision tower.
        template: the conversation template.
        max_length: tokens per sample.
        whole: `backbone` is a whole model.
        videos: the video folder.
        frames: taken of each video.
    """

    data: Path
    images: Path | None = None
    trusted: tuple[str, ...] = ()
    tokenizer: Path | None = None
    backbone: Path | None = None
    template: str | None = None
    max_length: int | None = None
    whole: bool = False
    videos: Path | None = None
    frames: int = FRAMES


def read_recipe_data(tokens: list[str]) -> RecipeData:
    """The data of a recipe, given as it is to training: YAML files, merged left to right, then `key=value`.

    A recipe's other keys are training's to judge; on the command line they are refused, as they would do nothing here.
    """
    for token in tokens:
        key = token.partition("=")[0].split(".")[0]
        if "=" in token and key not in (*KEYS, "reduction", "method", "plugin", "budget", *REDUCTION_KEYS):
            raise RecipeError(f"{token!r}: a check reads {', '.join(KEYS)} and no other key")
    values = read_recipe(tokens)
    if values.get("data") is None:
        raise RecipeError(f"{' '.join(tokens)} names no data")
    trusted = read_names("trusted", values.pop("trusted", None))
    for key in KEYS:
        expected: type = int if key in ("max_length", "frames") else str
        if not isinstance(values.get(key), expected | None) or isinstance(values.get(key), bool):
            raise RecipeError(f"{key}={shown(values[key])}: must be {'a whole number' if expected is int else 'text'}")
    if not 0 < (1 if values.get("max_length") is None else values["max_length"]) <= LONGEST:
        raise RecipeError(f"max_length={values['max_length']}: must be at least 1 and at most {LONGEST:,}")
    if not 0 < (1 if values.get("frames") is None else values["frames"]) <= MOST_FRAMES:
        raise RecipeError(f"frames={values['frames']}: must be at least 1 and at most {MOST_FRAMES:,}")
    whole = values.get("model")
    return RecipeData(
        data=Path(values["data"]),
        images=_path(values.get("images")),
        trusted=tuple(trusted),
        tokenizer=_model("model" if whole else "language_model", values),
        backbone=_model("model" if whole else "vision_tower", values),
        template=values.get("template"),
        max_length=values.get("max_length"),
        whole=bool(whole),
        videos=_path(values.get("videos")),
        frames=values.get("frames") or FRAMES,
    )


def _model(key: str, values: dict[str, Any]) -> Path | None:
    """A folder as it is named, here or not; of a name on the Hub the folder of its small files."""
    if values.get(key) is None:
        return None
    return folder_of(values[key], f"{key}=") if is_hub_name(values[key]) else Path(values[key])


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def says_places(folder: Path) -> bool:
    """Whether the processor in a whole model's folder says for each image how many placeholders it takes.

    Raises:
        RecipeError: it should, and cannot be read.
    """
    if not (folder / "config.json").is_file():
        return False  # said by whoever reads it
    try:
        return llava_prumerge.load_reader(folder).places is None
    except FileError as error:
        raise RecipeError(str(error)) from error
    except InputError:
        config = read_json_object(folder / "config.json")
        if "image_seq_length" in config:  # LLaVA-1.5, which needs no processor for the check
            return False
        raise


def count_image_tokens(folder: Path) -> int:
    """Placeholders per image: what a whole model's configuration says, or the patches of a vision tower."""
    if not folder.exists():
        raise RecipeError(f"{folder}: {why_missing(folder)}")
    if not (folder / "config.json").is_file() and (folder / _OPEN_CLIP).is_file():
        try:
            settings = read_json_object(folder / _OPEN_CLIP)["model_cfg"]["vision_cfg"]
        except FileError as error:
            raise RecipeError(str(error)) from error
        except (KeyError, TypeError) as error:
            raise RecipeError(f"{folder / _OPEN_CLIP} describes no vision tower ({error!r})") from error
        return _patches(settings.get("image_size", 224), settings.get("patch_size", 16))
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    llava_prumerge.register()
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise RecipeError(f"{folder}: no readable config.json ({' '.join(str(error).split())[:200]})") from error
    if getattr(config, "image_seq_length", None) is not None:
        return int(config.image_seq_length)
    vision = getattr(config, "vision_config", config)
    if vision is not config and not hasattr(vision, "image_size"):
        raise RecipeError(
            f"{folder}: images of a {config.model_type!r} have no fixed number of tokens; give --image-tokens N"
        )
    if not hasattr(vision, "image_size") or not hasattr(vision, "patch_size"):
        raise RecipeError(f"{folder}: a {config.model_type!r} is neither a vision tower nor a model with one")
    return _patches(vision.image_size, vision.patch_size)


def _patches(image_size: int, patch_size: int) -> int:
    return (image_size // patch_size) ** 2
