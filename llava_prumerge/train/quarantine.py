"""The account of bad samples: which were replaced, how many, and when there are too many to go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, gather_object
from transformers import TrainerCallback

from llava_prumerge.data.errors import SampleError
from llava_prumerge.train.step_log import add_lines, drop_later_lines, read_log

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from llava_prumerge.data.quarantine import BadSample

logger = logging.getLogger(__name__)

QUARANTINE_FILE = "quarantine.jsonl"


class TooManyBadSamples(SampleError):
    """More bad samples than the recipe puts up with."""


class QuarantineLedger(TrainerCallback):
    """Counts each bad sample once, over all ranks, epochs and resumptions, and writes it to quarantine.jsonl.

    Args:
        limit: share of the records that may be bad.
        records: their number.
    """

    def __init__(self, limit: float, records: int) -> None:
        self.limit, self.records = limit, records
        self.allowed = math.floor(limit * records + 1e-6)  # 0.29 of 100 are 29
        self.seen: set[int] = set()
        self.fresh: list[BadSample] = []

    @property
    def count(self) -> int:
        """Bad samples met so far."""
        return len(self.seen)

    def note(self, bad: Iterable[BadSample]) -> None:
        """Takes in what a micro-batch of this rank says of itself."""
        self.fresh += [sample for sample in bad if sample.index not in self.seen]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.path = Path(args.output_dir) / QUARANTINE_FILE
        lines: list[dict[str, Any]] = []
        if state.is_world_process_zero:
            drop_later_lines(self.path, state.global_step)
            lines = read_log(self.path)
        self.seen = {line["index"] for line in gather_object(lines) if isinstance(line.get("index"), int)}
        self.fresh = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before a line is logged and before a checkpoint is written: neither must know less than the other."""
        if control.should_log or control.should_save:
            self.collect(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collect(args, state)

    def collect(self, args: TrainingArguments, state: TrainerState) -> None:
        """Brings the ranks' finds together. A collective: every rank logs, and all stop in the same step."""
        found = gather(torch.tensor([len(self.fresh)], device=args.device))  # [ranks]
        if not found.any():
            return
        fresh = {sample.index: sample for sample in gather_object(self.fresh)}
        self.fresh = []
        news = [fresh[index] for index in sorted(fresh) if index not in self.seen]
        self.seen.update(fresh)
        if state.is_world_process_zero:
            self.write(state.global_step, news)
        if news and self.count > self.allowed:
            raise TooManyBadSamples(
                f"too many bad samples: {self.count} of {self.records} records, and bad_sample_limit={self.limit:g} "
                f"allows {self.allowed} ({self.path}); the last is {news[-1].sample_id}: {news[-1].reason}"
            )

    def write(self, step: int, news: list[BadSample]) -> None:
        """Appends to the file, and says it aloud."""
        add_lines(self.path, step, map(asdict, news))
        for sample in news:
            logger.warning(
                "bad sample %s: %s; record %d stands in", sample.sample_id, sample.reason, sample.replacement
            )
