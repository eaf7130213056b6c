"""A model that is named by a path or by a name on the Hub, as a folder of its small files: everything but weights."""

from __future__ import annotations

import os
from pathlib import Path

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.hub_names import is_hub_name, is_missing, why_missing

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""Configuration, tokenizer, chat template, image processor."""


class HubError(InputError):
    """A model that is neither here nor to be had from the Hub; the message names it."""


def folder_of(text: str | os.PathLike[str], called: str = "") -> Path:
    """The folder of a model's small files: its own, or the one in the Hub's cache, fetched where it is not there.

    Args:
        text: a folder, or a name on the Hub.
        called: what the message puts before it, such as "language_model=".

    Raises:
        HubError: there is no such folder, or the Hub does not give it.
    """
    if is_missing(text):
        raise HubError(f"{called}{text}: {why_missing(text)}")
    if not is_hub_name(text):
        return Path(text)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(os.fspath(text), allow_patterns=list(SMALL_FILES)))
    except (OSError, ValueError) as error:  # a network, a name or a right that is missing
        reason = " ".join(str(error).split())[:200]
        raise HubError(f"{called}{text}: does not exist here, and the Hub does not give it ({reason})") from error


def is_here(text: str) -> bool:
    """Whether a model can be read without asking the network: a folder, or a name whose configuration is in the cache."""
    if not is_hub_name(text):
        return Path(text).exists()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(text, "config.json"), str)


def is_offline() -> bool:
    """Whether the caller forbids to ask the Hub (HF_HUB_OFFLINE, as huggingface_hub reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
