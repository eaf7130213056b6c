"""SIGTERM and Ctrl-C: the run saves a checkpoint at the next step boundary and ends; the same command continues it.

Schedulers announce a preemption or the end of a time limit by SIGTERM, and they signal every process of a job: ranks, and the
processes that load their data, which have to go on until their rank has finished the step. A terminal does the same with SIGINT.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from llava_prumerge.train.ranks import any_rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class StopOnSignal(TrainerCallback):
    """Turns SIGTERM or SIGINT on any rank into a checkpoint and an end on all of them, while it is entered.

    SIGINT does so from the first step on: before, nothing is lost by ending at once. A second one ends at once.

    Attributes:
        stopped_at: the step the run was stopped at, None while it was not.
        interrupted: by SIGINT, which a shell wants to hear of.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False
        self.stopped_at: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self.before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, self.request)
        return self

    def __exit__(self, *error: object) -> None:
        for one, handler in self.before.items():
            signal.signal(one, handler)

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler: it only takes note, as a step cannot be left in the middle."""
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        self.requested = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.before.get(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.request)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if any_rank(self.requested, args.device):
            logger.info(
                "%s: saving at step %d and stopping", "Ctrl-C" if self.interrupted else "SIGTERM", state.global_step
            )
            control.should_save = control.should_log = control.should_training_stop = True
            self.stopped_at = state.global_step
        return control


def outlive_sigterm(loader: DataLoader) -> None:
    """Let a loader's processes heed SIGTERM from the process that owns them alone, and Ctrl-C not at all."""
    loader = getattr(loader, "base_dataloader", loader)  # the one inside accelerate's starts the processes
    loader.worker_init_fn = partial(start_worker, os.getpid(), loader.worker_init_fn)


def start_worker(owner: int, then: Callable[[int], None] | None, worker: int) -> None:
    """Runs first in a data loading process.

    Args:
        owner: process whose SIGTERM ends this one; a handler could not tell who sent it, a waiting thread can.
        then: what else is to run first.
        worker: its number.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal, for the rank to deal with
    threading.Thread(target=end_when_told, args=(owner,), daemon=True).start()
    if then is not None:
        then(worker)


def end_when_told(owner: int) -> None:
    """Wait for the owner's SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != owner:
        pass
    os._exit(0)
