"""What the ranks of a run tell each other besides gradients: flags, objects, and shares of a folder's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed

from llava_prumerge.ground.ranks import is_main_rank
from llava_prumerge.train.checkpoints import (
    Digests,
    digest_files,
    find_change,
    find_fault,
    list_checkpoints,
    list_files,
)


def is_distributed() -> bool:
    """Whether there are other ranks to talk to."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        distributed.barrier()


def gather_objects(value: Any) -> list[Any]:
    """One small picklable value of each rank, in their order. A collective: every rank calls it."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank. A collective, as small as one can be."""
    if not is_distributed():
        return flag
    flags = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return bool(flags.item())


def from_main_rank(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    return gather_objects(value if is_main_rank() else None)[0]


def digest_together(checkpoint: Path, sync: bool = False) -> Digests:
    """Hash a folder's files, each rank its share: a hundred gigabytes would keep one rank busy for minutes.

    Args:
        sync: see `digest_files`.
    """
    names = from_main_rank(list_files(checkpoint) if is_main_rank() else None)
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    shares = gather_objects(digest_files(checkpoint, names[rank::ranks], sync))
    return {name: digest for share in shares for name, digest in share.items()}


def fault_together(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be continued from, or None. Rank 0 judges what all have read, so that no two ranks disagree."""
    fault = from_main_rank(find_fault(checkpoint) if is_main_rank() else None)
    if fault is not None:
        return fault
    found = digest_together(checkpoint)
    return from_main_rank(find_change(checkpoint, found) if is_main_rank() else None)


def checkpoints_together(run: Path) -> list[Path]:
    """A run's checkpoints as rank 0 sees them."""
    return from_main_rank(list_checkpoints(run) if is_main_rank() else None)
