"""A model named by a recipe, as a folder: its own, or the small files of a repository on the Hub from the cache."""

from __future__ import annotations

import os
from pathlib import Path

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.ground.hub_names import is_hub_name, is_missing, why_missing

# Configuration, tokenizer, chat template, image processor: everything but weights.
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


def folder_of(key: str, text: str) -> Path:
    """The folder that a recipe's `model`, `language_model` or `vision_tower` is.

    Args:
        key: of the recipe, for the message.
        text: a folder, or a name on the Hub, whose small files are then fetched into the Hub's cache if they are not there.

    Raises:
        RecipeError: there is no such folder, or the Hub does not give it.
    """
    if is_missing(text):
        raise RecipeError(f"{key}={text}: {why_missing(text)}")
    if not is_hub_name(text):
        return Path(text)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=list(SMALL_FILES)))
    except (
        OSError,
        ValueError,
    ) as error:  # what huggingface_hub raises for a network, a name and a right that is missing
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{key}={text}: does not exist here, and the Hub does not give it ({reason})") from error


def is_here(text: str) -> bool:
    """Whether a model can be read without asking the network: a folder, or a name whose configuration is in the cache."""
    if not is_hub_name(text):
        return Path(text).exists()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(text, "config.json"), str)


def is_offline() -> bool:
    """Whether the caller forbids to ask the Hub (HF_HUB_OFFLINE, as huggingface_hub reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
