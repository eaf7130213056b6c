"""What all prompts of a run begin with (the template's system prompt), run through the model once instead of each time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

LEAST = 2
"""Shorter beginnings (a lone BOS token) are not worth a cache."""


class PrefixCache:
    """Text ahead of all images and questions, and the keys and values it leaves in every layer.

    Args:
        model: ours.
        ids: the tokens.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        given = torch.tensor([self.ids], device=next(model.parameters()).device)
        with torch.inference_mode():
            self._cache = model(input_ids=given, use_cache=True, logits_to_keep=1).past_key_values

    def cache(self, rows: int) -> Any:
        """A cache of its own for a batch of so many rows."""
        with torch.inference_mode():
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(rows)
        return cache


def common_prefix(rows: Sequence[Sequence[int]], image: int) -> list[int]:
    """The tokens that all rows begin with, up to the first image and short of the end of each row."""
    shortest, longest = min(rows), max(rows)  # in lexicographic order: what these share, all share
    common = []
    for one, other in zip(shortest, longest, strict=False):
        if one != other or one == image:
            break
        common.append(one)
    return common[: min(map(len, rows)) - 1]


def make_prefix_cache(model: Any, rows: Sequence[Sequence[int]]) -> PrefixCache | None:
    """The prefix cache of some prompts, run; None where the model or one of its methods must see prompts whole.

    Args:
        model: our model may share; of others nothing is known.
        rows: the prompts' tokens, of all questions of a run: an answer must not depend on which are still to be asked.
    """
    reads = getattr(model, "reads_prompt", None)
    if reads is None or reads() or not rows:
        return None
    ids = common_prefix(rows, model.config.image_token_id)
    return PrefixCache(model, ids) if len(ids) >= LEAST else None
