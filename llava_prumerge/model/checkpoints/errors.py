"""The error of all conversions: it names the file and the key."""

from __future__ import annotations

from llava_prumerge.model.loading import LoadingError


class CheckpointError(LoadingError):
    """A checkpoint that cannot be converted; the message names the file, and the key where there is one."""


def first_few(names: list[str], shown: int = 3) -> str:
    """A list of names cut short: "a, b, c ... (40 in all)"."""
    return ", ".join(names[:shown]) + (f" ... ({len(names)} in all)" if len(names) > shown else "")
