"""The processes of a run, as the launcher names them in the environment: this one's rank, and how many there are."""

from __future__ import annotations

import os

from llava_prumerge.ground.errors import InputError


def rank() -> int:
    """This process among all of the run, from 0; 0 without a launcher (torchrun's RANK)."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This process among those on its machine, which is also its GPU; 0 without a launcher (torchrun's LOCAL_RANK)."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """How many processes the run has; 1 without a launcher (torchrun's WORLD_SIZE)."""
    return max(_number("WORLD_SIZE", 1), 1)


def is_main_rank() -> bool:
    """Whether this process is the one that writes files and the console."""
    return rank() == 0


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return otherwise
    try:
        return int(text)
    except ValueError:
        raise InputError(f"the environment variable {name} must be a whole number, not {text!r}; unset it") from None
