"""Turns of a conversation that share what comes before them and do not see each other: their mask, and what they go with.

Each turn is what it would be in a sequence of its own behind the same beginning: it sees the beginning and itself, and its positions
go on where the beginning ends. So a sequence of T turns computes the beginning, an image above all, once instead of T times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava_prumerge.model.errors import ModelError


def check_turns(model: Any, cached: bool = False) -> None:
    """Refuse turns beside each other where they would not be what they are by themselves.

    Args:
        model: of ours.
        cached: keys of earlier tokens are given or wanted.

    Raises:
        ModelError: a method chooses by the prompt, which is all turns here, or keys are cached.
    """
    methods = [method for method in (model.model.reducer, model.model.decoder.pruner) if method is not None]
    if model.reads_prompt():
        raise ModelError(
            f"packing=turns: {' and '.join(method.name for method in methods)} would choose tokens by all turns of a record "
            "together; take packing=none, or a reducer that does not read the prompt"
        )
    if cached:
        raise ModelError("turn_of is for training: it takes no past_key_values, and use_cache=False")


def apart(mask: Tensor, turns: Tensor) -> Tensor:
    """Take from a mask what turns see of each other.

    Args:
        mask: [B, 1, L, L], True for what is seen or additive.
        turns: [B, L], 0 for what they share.
    """
    seen = ((turns[:, :, None] == turns[:, None]) | (turns == 0)[:, None])[:, None]
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
