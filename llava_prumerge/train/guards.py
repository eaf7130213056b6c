"""What a run does about steps that would spoil it: skip one that is not finite, stop after several, refuse an empty one."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.ground.errors import CannotGoOn
from llava_prumerge.ground.ranks import is_main_rank
from llava_prumerge.train.ranks import gather_objects
from llava_prumerge.train.step_log import add_lines, drop_later_lines, read_log

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"


class TrainingFault(CannotGoOn):
    """Training cannot go on; the message says at which step, why, and on which samples."""


def poison(loss: Tensor) -> Tensor:
    """A loss whose gradient is finite only if the loss is.

    An infinite loss can have a finite gradient. Made NaN, it reaches the gradient norm, which all ranks share: one
    number then tells every rank of every fault, without another collective and without waiting for the device.
    """
    finite = torch.isfinite(loss.detach())
    return loss * torch.where(finite, 1.0, math.nan).to(loss.dtype)


class StepGuard:
    """Remembers the micro-batches of a step until its gradient norm is known, and judges it.

    Args:
        folder: of the run; `skipped.jsonl` is written there.
        limit: so many skipped steps in a row end the run.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.file = folder / SKIPPED_FILE
        self.limit = limit
        self.in_a_row = 0
        self.skipped = 0
        self.batches: list[tuple[list[Any], Tensor, Tensor]] = []

    def start(self, step: int) -> None:
        """Forget the skipped steps that a resumed run is about to repeat."""
        if is_main_rank():
            drop_later_lines(self.file, step)
        self.skipped = len(read_log(self.file))

    def watch(self, ids: list[Any], loss: Tensor, logits: Tensor | None) -> None:
        """Keep what would name the culprits of a micro-batch.

        Args:
            ids: of its samples, B of them.
            loss: its loss.
            logits: [B, L, V]
        """
        rows = torch.zeros(len(ids), device=loss.device) if logits is None or len(logits) != len(ids) else logits
        if rows is logits:
            rows = logits.detach().sum(dim=(1, 2), dtype=torch.float32)  # [B], not finite if any of them is not
        self.batches.append((ids, loss.detach(), rows))

    def judge(self, norm: float, step: int) -> bool:
        """Whether the step may be taken; one that may not is recorded, and one too many ends the run. All ranks agree.

        Args:
            norm: of the gradient over all ranks.
            step: number of this step.

        Raises:
            TrainingFault: `limit` steps in a row could not be taken.
        """
        batches, self.batches = self.batches, []
        if math.isfinite(norm):
            self.in_a_row = 0
            return True
        named = gather_objects(suspects(batches))  # the norm is the same on all ranks, so all of them come here
        losses_finite = all(finite for finite, _ in named)
        ids = [name for finite, names in named if losses_finite or not finite for name in names]
        what = "gradient norm" if losses_finite else "loss"
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        if is_main_rank():
            add_lines(self.file, step, [{"not_finite": what, "ids": ids}])
        logger.warning("step %d skipped: %s is not finite; samples %s", step, what, ", ".join(map(str, ids)))
        if self.in_a_row >= self.limit:
            raise TrainingFault(
                f"{self.in_a_row} steps in a row were not finite, up to step {step} ({what}; samples "
                f"{', '.join(map(str, ids))}); weights are those before them, see {self.file} and max_skipped_steps"
            )
        return False


def suspects(batches: list[tuple[list[Any], Tensor, Tensor]]) -> tuple[bool, list[Any]]:
    """The samples of this rank that a fault can come from: as few as can be told. -> all losses are finite, their ids"""
    bad = [batch for batch in batches if not torch.isfinite(batch[1])]
    if not bad:
        return True, [name for ids, _, _ in batches for name in ids]
    found = []
    for ids, _, rows in bad:
        faulty = [name for name, finite in zip(ids, torch.isfinite(rows).tolist(), strict=True) if not finite]
        found += faulty or ids
    return False, found


def refuse_empty(batches: list[dict[str, Any]], supervised: Tensor | int | None, step: int) -> None:
    """Refuse a global batch that has nothing to learn from; its loss would be 0 / 0.

    Raises:
        TrainingFault: on all ranks, with the ids of its samples.
    """
    if supervised is None or int(supervised):
        return
    ids = [
        name for names in gather_objects([name for batch in batches for name in batch.get("ids", [])]) for name in names
    ]
    raise TrainingFault(f"step {step}: no token of the batch carries loss; samples {', '.join(map(str, ids))}")


def check_finite(model: nn.Module) -> None:
    """Refuse to store weights that are not finite: rotation would put them in the place of the last good ones.

    Raises:
        TrainingFault: this rank holds such a weight, with its name.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shard = getattr(parameter, "ds_tensor", parameter)  # what ZeRO-3 leaves on this rank
            if not torch.isfinite(shard.detach()).all():
                raise TrainingFault(f"{name} holds values that are not finite; nothing was saved")
