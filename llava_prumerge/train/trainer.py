"""transformers' Trainer with LLaVA's parameter groups and sampling order, the method's loss, guarded steps and our checkpoints."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from llava_prumerge.data.sampler import GroupedSampler
from llava_prumerge.ground.files import write_json
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.model.adapters import Base, load_complete, plain_model, save_adapter, save_complete
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.checkpoints import PREFIX, STAGING_FOLDER, CheckpointError, check_room, publish, rotate, seal
from llava_prumerge.train.guards import StepGuard, TrainingFault, check_finite, poison, refuse_empty
from llava_prumerge.train.preemption import outlive_sigterm
from llava_prumerge.train.preflight import MADE_FROM_FILE
from llava_prumerge.train.quarantine import QuarantineLedger
from llava_prumerge.train.ranks import barrier, digest_together
from llava_prumerge.train.stages import gather_trained, load_trained, parameter_groups, set_modes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader
    from transformers import LlavaProcessor, TrainerCallback

logger = logging.getLogger(__name__)


class LlavaTrainer(Trainer):
    """Trainer for the three stages.

    Args:
        arguments: the run's settings.
        base: where the frozen weights come from, stored with every checkpoint.
        processor: stored with every checkpoint.
        origin: what the run is made from, likewise.
        loss_unit: losses are divided by it.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        arguments: TrainArguments,
        base: Base,
        processor: LlavaProcessor,
        train_dataset: Dataset,
        data_collator: Callable[[list], dict[str, Any]],
        callbacks: list[TrainerCallback] | None = None,
        origin: dict[str, Any] | None = None,
        loss_unit: float = 1.0,
    ) -> None:
        self.loss_unit = loss_unit
        self.arguments, self.base, self.processor, self.origin = arguments, base, processor, origin
        self.guard = StepGuard(Path(str(args.output_dir)), arguments.max_skipped_steps)
        self.schedule_owed = False
        self.staging: Path | None = None
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, data_collator=data_collator, callbacks=callbacks
        )
        self.quarantine = QuarantineLedger(arguments.bad_sample_limit, len(train_dataset))
        self.add_callback(self.quarantine)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over role x decay groups, each with its own rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parameter_groups(model, set(self.get_decay_parameter_names(model)), self.arguments)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        """LLaVA's order. A megabatch is one optimiser step: all ranks, all accumulation steps."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        chunks = self.args.world_size * self.args.gradient_accumulation_steps
        self.sampler = GroupedSampler(
            dataset.lengths,
            self.args.per_device_train_batch_size,
            chunks,
            seed=self.args.seed,
            grouped=self.arguments.group_by_modality_length,
            pool=self.arguments.length_pool,
        )
        return self.sampler

    def get_train_dataloader(self) -> DataLoader:
        """Loading processes go on when a scheduler signals the whole job."""
        loader = super().get_train_dataloader()
        outlive_sigterm(loader)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of a step, and the number of tokens that carry loss, over all ranks."""
        batches, supervised = super().get_batch_samples(epoch_iterator, num_batches, device)
        refuse_empty(batches, supervised, self.state.global_step + 1)
        return batches, supervised

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Loss per supervised token over the whole global batch, plus the method's own term; per image with `objective=regions`."""
        self.quarantine.note(inputs.get("quarantined", ()))
        ids = inputs.get("ids", [])
        inputs = {name: value for name, value in inputs.items() if name not in ("ids", "quarantined")}
        set_modes(self.model)
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        except ReductionError as error:
            raise ReductionError(
                f"step {self.state.global_step + 1}, samples {', '.join(map(str, ids))}: {error}"
            ) from error
        loss = loss / self.loss_unit
        extra = plain_model(self.model).method_loss()
        if extra is not None:
            # The first term is already a share of the global batch, this one is a mean of its micro-batch.
            loss = loss + extra / self.current_gradient_accumulation_steps
        loss = poison(loss)
        self.guard.watch(ids, loss, outputs.logits)
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> float:
        """The gradient norm over all ranks, just before the optimiser's step. A step that is not finite is not taken.

        Weights and moments stay as they are; the schedule goes on, so that a step's rate follows from its number. DeepSpeed has
        stepped by now, or left it for the same reason.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.item() if isinstance(norm, Tensor) else float(norm)
        if not self.guard.judge(norm, self.state.global_step + 1):
            if not self.is_deepspeed_enabled:
                model.zero_grad(set_to_none=True)  # AdamW passes over parameters without gradients
            elif self.accelerator.optimizer_step_was_skipped:
                self.schedule_owed = True
            else:
                raise TrainingFault(
                    "DeepSpeed took a step that is not finite; its JSON must not turn check_grad_overflow off"
                )
        return norm

    def catch_up_schedule(self) -> None:
        """At the end of a step that DeepSpeed skipped: move the schedule on, which neither it nor Trainer has done."""
        if self.schedule_owed:
            (self.deepspeed.lr_scheduler or self.lr_scheduler).step()
            self.schedule_owed = False

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the reduction did since the last line, over all ranks."""
        if "loss" in logs:
            self._tr_loss.zero_()  # Trainer subtracts the sum from itself, which leaves NaN in place for good
            skipped = {"skipped_steps": self.guard.skipped} if self.guard.skipped else {}
            logs = {**logs, **self.reduction_summary(), "bad_samples": self.quarantine.count, **skipped}
        super().log(logs, start_time)

    def reduction_summary(self) -> dict[str, float]:
        """Kept tokens per image, their mean over layers, padding since the last call. A collective: every rank logs."""
        stats = plain_model(self.model).reduction_stats()
        images = stats["images"]
        least = stats["kept_min"] if images else math.inf
        row = [
            images,
            images * stats["kept_mean"],
            least,
            stats["kept_max"],
            stats["padding_share"] * bool(images),
            bool(images),
            images * stats["equivalent_tokens"],
        ]
        rows = self.accelerator.gather(torch.tensor([row], dtype=torch.float32, device=self.args.device))  # [ranks, 7]
        images, kept, _, _, padding, seen, equivalent = rows.sum(dim=0).tolist()
        if not images:
            return {}
        return {
            "kept_mean": kept / images,
            "kept_min": rows[:, 2].min().item(),
            "kept_max": rows[:, 3].max().item(),
            "padding_share": padding / seen,
            "equivalent_tokens": equivalent / images,
        }

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the stage trained, with projector, method and configuration, from rank 0."""
        folder, run = Path(output_dir or str(self.args.output_dir)), Path(str(self.args.output_dir))
        place = run if self.staging is None else run / folder.name
        if self.arguments.stage == "full":
            sharded = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
            state = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
            if self.args.should_save:
                save_complete(self.model, folder, state, self.processor)
        else:
            state = gather_trained(self.model)
            if self.args.should_save:
                save_adapter(self.model, folder, state, self.base, self.processor, place)

    def _get_output_dir(self, trial: Any) -> str:
        """Where `_save_checkpoint` puts its folder: aside, until it is whole."""
        return super()._get_output_dir(trial) if self.staging is None else str(self.staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, seal and rename it; a fault leaves earlier ones as they were. All ranks take part.

        Raises:
            CheckpointError: it could not be written.
        """
        run = Path(str(self.args.output_dir))
        check_finite(self.model)
        staging = run / STAGING_FOLDER
        try:
            if self.args.should_save:
                check_room(run)
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
            barrier()
            if not staging.is_dir():
                raise CheckpointError(f"{run} is not the folder that rank 0 writes to; all hosts have to see one")
            self.staging = staging
            super()._save_checkpoint(model, trial)
            barrier()
            staged = staging / f"{PREFIX}{self.state.global_step}"
            if self.args.should_save and self.origin is not None:
                write_json(staged / MADE_FROM_FILE, self.origin)
            barrier()
            digests = digest_together(staged, sync=True)
            if self.args.should_save:
                seal(staged, digests, self.args.world_size)
                rotate(run, publish(staged, run), self.args.save_total_limit)
            barrier()
        except Exception as error:  # every library that writes has its own
            shutil.rmtree(staging, ignore_errors=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"{PREFIX}{self.state.global_step} could not be written to {run}: {reason}; earlier checkpoints are as "
                "they were, and the same command continues from the newest"
            ) from error
        finally:
            self.staging = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The counterpart of `save_model`; DeepSpeed restores its own checkpoints without it."""
        load = load_complete if self.arguments.stage == "full" else load_trained
        load(self.model if model is None else model, Path(resume_from_checkpoint))
