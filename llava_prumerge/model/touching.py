"""Vision modules that a rank calls although its batch leaves them out: under ZeRO-3 all ranks make the same calls, in one order."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.model.prefusion import touched

MODALITIES = {"image": "pixel_values", "video": "pixel_values_videos"}
"""What `get_<modality>_features` reads, in the order in which they are called; a placeholder is `config.<modality>_token_id`."""


def left_out(host: Any, here: Collection[str]) -> set[str]:
    """Modalities of which a training batch has nothing, and which are to be called all the same.

    Of two towers both; of one that serves both what another rank calls, and images where no rank has anything.

    Args:
        host: a `model.host.Host`.
        here: what this rank's batch has.
    """
    if len(host.tower_names) > 1:
        return set(MODALITIES) - set(here)
    anywhere = set(here)
    if is_sharded(host.tower):
        flags = largest_of_all_ranks([int(name in here) for name in MODALITIES], host.device)
        anywhere = {name for name, flag in zip(MODALITIES, flags, strict=True) if flag}
    return (anywhere or {"image"}) - set(here)


def touch(host: Any, modality: str) -> Tensor:
    """Zero, by way of the modules that the modality's blank input reaches."""
    output = getattr(host, f"get_{modality}_features")(return_dict=True, **host.blank()[modality])
    deep = [part for level in getattr(output, "deepstack_features", None) or () for part in level]
    reached = [part.sum() for part in [*output.pooler_output, *deep]]
    if host.reducer is not None and host.reducer.rewrites:
        reached.append(touched(host.reducer, output))
    return 0.0 * torch.stack(reached).sum()


def calls_of_all_ranks(module: nn.Module, calls: int) -> int:
    """How often a module is to be called so that all ranks call it equally often; asked ahead of the first call.

    Args:
        module: called for images of each size, of which ranks have different numbers.
        calls: this rank's.
    """
    if not is_sharded(module):  # methods without parameters, too
        return calls
    (most,) = largest_of_all_ranks([calls], next(module.parameters()).device)
    return most


def is_sharded(module: nn.Module) -> bool:
    """Whether DeepSpeed holds a module's parameters in shards, which a call of the module gathers."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def largest_of_all_ranks(numbers: list[int], device: torch.device) -> list[int]:
    """The largest of each number over all ranks, which must all ask."""
    shared = torch.tensor(numbers, device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return [int(number) for number in shared.tolist()]
