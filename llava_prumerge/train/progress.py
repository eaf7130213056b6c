"""What a run tells while it runs: a line on the console, with the time left, and the same numbers in metrics.jsonl."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from llava_prumerge.train.step_log import add_lines, drop_later_lines

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from llava_prumerge.train.trainer import LlavaTrainer

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class NothingLeft(Exception):
    """The checkpoint to resume from is already at the last step; Trainer would take one more."""


class ProgressReport(TrainerCallback):
    """Writes progress from rank 0.

    Args:
        global_batch: samples per optimiser step.
    """

    def __init__(self, global_batch: int) -> None:
        self.global_batch = global_batch
        self.trainer: LlavaTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.last_time = time.perf_counter()
        self.first_step = self.last_step = state.global_step
        self.path = Path(args.output_dir) / METRICS_FILE
        if state.is_world_process_zero:
            drop_later_lines(self.path, state.global_step)
        if self.trainer is not None:
            self.trainer.guard.start(state.global_step)
        if state.global_step >= state.max_steps:  # weights and states are loaded by now
            raise NothingLeft

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # accelerate passes the epoch on to some nestings of samplers only, a resumed run on several ranks not among them.
        if self.trainer is not None:
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer is not None:
            self.trainer.catch_up_schedule()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        now, step = time.perf_counter(), state.global_step
        rate = (step - self.last_step) * self.global_batch / max(now - self.last_time, 1e-9)
        left = (now - self.started) / max(step - self.first_step, 1) * (state.max_steps - step)
        self.last_time, self.last_step = now, step
        line = {"steps": state.max_steps, **logs, "samples_per_second": rate, "seconds_left": left}
        add_lines(self.path, step, [line])
        logger.info(format_line({"step": step, **line}))


def format_line(line: dict[str, Any]) -> str:
    """One console line."""
    parts = [f"step {line['step']}/{line['steps']}", f"loss {line['loss']:.4f}", f"lr {line['learning_rate']:.2e}"]
    if line.get("grad_norm") is not None:
        parts.append(f"grad {line['grad_norm']:.3f}")
    parts.append(f"{line['samples_per_second']:.1f} samples/s")
    if "kept_mean" in line:
        parts.append(f"kept {line['kept_mean']:.1f} [{line['kept_min']:.0f}, {line['kept_max']:.0f}]")
        parts.append(f"padding {line['padding_share']:.1%}")
    if line.get("bad_samples"):
        parts.append(f"bad samples {line['bad_samples']}")
    if "skipped_steps" in line:
        parts.append(f"skipped {line['skipped_steps']}")
    parts.append(f"left {format_seconds(line['seconds_left'])}")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
