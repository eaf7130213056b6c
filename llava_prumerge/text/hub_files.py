"""A model that is named by a path or by a name on the Hub, as a folder: its small files, or all that a conversion reads."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.hub_names import is_hub_name, is_missing, why_missing

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""Configuration, tokenizer, chat template, image processor."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt")
TWINS = (("model*.safetensors", "pytorch_model*.bin"), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
"""Weights that repositories hold twice; the second is then not fetched."""


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
    return _snapshot(os.fspath(text), called, list(SMALL_FILES)) if is_hub_name(text) else Path(text)


def fetch_model(text: str | os.PathLike[str], called: str = "", weights: bool = True) -> Path:
    """The folder of a model with its weights: its own, or the one in the Hub's cache, fetched where it is not there.

    Args:
        text: a folder, a file, or a name on the Hub: NAMESPACE/NAME, or NAMESPACE/NAME@REVISION.
        called: as for `folder_of`.
        weights: False leaves the weights of whole models behind, for a look at what there is.

    Raises:
        HubError: as `folder_of`.
    """
    name, _, revision = os.fspath(text).partition("@")
    if Path(text).exists() or not is_hub_name(name):
        return folder_of(text, called)
    left = [pattern for pair in TWINS[:1] for pattern in pair]
    if weights:
        from huggingface_hub import HfApi

        try:
            files = HfApi().model_info(name, revision=revision or None).siblings
            held = [file.rfilename for file in files or ()]
        except Exception:  # the library's errors, its HTTP client's: what the cache has
            held = []
        left = [second for first, second in TWINS if fnmatch.filter(held, first)]
    return _snapshot(name, called, [*SMALL_FILES, *WEIGHT_FILES], left, revision or None)


def _snapshot(
    name: str, called: str, wanted: list[str], left: list[str] | None = None, revision: str | None = None
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=left))
    except Exception as error:  # a network, a name or a right that is missing: the library's errors, its HTTP client's
        reason = " ".join(str(error).split())[:200]
        at = f" at {revision}" if revision else ""
        raise HubError(f"{called}{name}: does not exist here, and the Hub does not give it{at} ({reason})") from error


def is_here(text: str) -> bool:
    """Whether a model can be read without asking the network: a folder, or a name whose configuration is in the cache."""
    if not is_hub_name(text):
        return Path(text).exists()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(text, "config.json"), str)


def is_offline() -> bool:
    """Whether the caller forbids to ask the Hub (HF_HUB_OFFLINE, as huggingface_hub reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
