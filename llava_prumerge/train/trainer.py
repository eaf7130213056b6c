"""transformers' Trainer with LLaVA's parameter groups and sampling order, the method's loss and our checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from llava_prumerge.data.sampler import GroupedSampler
from llava_prumerge.model.adapters import Base, plain_model, save_adapter, save_complete
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.quarantine import QuarantineLedger
from llava_prumerge.train.stages import gather_trained, load_trained, parameter_groups, set_modes

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import LlavaProcessor, TrainerCallback


class LlavaTrainer(Trainer):
    """Trainer for the three stages.

    Args:
        arguments: the run's settings.
        base: where the frozen weights come from, stored with every checkpoint.
        processor: stored with every checkpoint.
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
    ) -> None:
        self.arguments, self.base, self.processor = arguments, base, processor
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
        )
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Loss per supervised token over the whole global batch, plus the method's own term."""
        self.quarantine.note(inputs.get("quarantined", ()))
        inputs = {name: value for name, value in inputs.items() if name not in ("ids", "quarantined")}
        set_modes(self.model)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        extra = plain_model(self.model).method_loss()
        if extra is not None:
            # The first term is already a share of the global batch, this one is a mean of its micro-batch.
            loss = loss + extra / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the reduction did since the last line, over all ranks."""
        if "loss" in logs:
            logs = {**logs, **self.reduction_summary(), "bad_samples": self.quarantine.count}
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
        folder = Path(output_dir or str(self.args.output_dir))
        if self.arguments.stage == "full":
            sharded = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
            state = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
            if self.args.should_save:
                save_complete(self.model, folder, state, self.processor)
        else:
            state = gather_trained(self.model)
            if self.args.should_save:
                save_adapter(self.model, folder, state, self.base, self.processor)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The counterpart of `save_model`; DeepSpeed restores its own checkpoints without it."""
        if self.arguments.stage == "full":
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(self.model if model is None else model, Path(resume_from_checkpoint))
