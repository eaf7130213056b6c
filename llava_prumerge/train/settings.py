"""From our arguments to transformers' TrainingArguments, and the process group they run in."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import socket
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.ranks import is_main_rank, world_size
from llava_prumerge.train.arguments import TrainArguments, accumulation_steps

CPU_FLAGS = Path("/proc/cpuinfo")


def uses_bf16(arguments: TrainArguments) -> bool:
    """Whether to compute in bf16; `auto` asks the hardware, as bf16 is several times slower than float32 where it is emulated."""
    if arguments.precision != "auto":
        return arguments.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = CPU_FLAGS.read_text().split() if CPU_FLAGS.is_file() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags


def check_attention(arguments: TrainArguments) -> None:
    """Refuse FlashAttention where it cannot run; `sdpa`, the default, runs everywhere.

    Raises:
        RecipeError: the package or a CUDA device is missing, or bf16 is off.
    """
    if arguments.attention != "flash_attention_2":
        return
    if importlib.util.find_spec("flash_attn") is None:
        raise RecipeError(
            "attention=flash_attention_2 needs flash-attn (pip install -e '.[flash]'); or take attention=sdpa"
        )
    if not torch.cuda.is_available() or not uses_bf16(arguments):
        raise RecipeError("attention=flash_attention_2 needs a CUDA device and bf16; or take attention=sdpa")


def start_process_group(arguments: TrainArguments) -> None:
    """Prepare torch.distributed for DeepSpeed where it would not do so itself.

    - Without a launcher DeepSpeed asks MPI who it is: a process on its own says so itself.
    - On CPU, accelerate starts torch.distributed but not deepspeed.comm, and ZeRO-3 then miscounts the ranks.
    - On CPU, DeepSpeed compiles a shared-memory kernel at its first start (minutes); gloo does without.
    """
    if arguments.deepspeed is None:
        return
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if os.environ.get("ACCELERATE_USE_CPU"):
        raise InputError("ACCELERATE_USE_CPU is set: accelerate then drops DeepSpeed without a word; unset it")
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def training_arguments(arguments: TrainArguments) -> TrainingArguments:
    """Translate. Whatever decides a result is set here by name, never left to a default of the library."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(str(arguments.output_dir)) / "tensorboard")  # no argument for it
    names = {item.name for item in dataclasses.fields(TrainingArguments)}
    on_cpu = not torch.cuda.is_available()
    values: dict[str, Any] = {
        "output_dir": arguments.output_dir,
        "per_device_train_batch_size": arguments.per_device_batch,
        "gradient_accumulation_steps": accumulation_steps(arguments, world_size()),
        "average_tokens_across_devices": True,
        "num_train_epochs": arguments.epochs,
        "max_steps": -1 if arguments.max_steps is None else arguments.max_steps,
        "optim": "adamw_torch",
        "learning_rate": arguments.learning_rate,
        "weight_decay": arguments.weight_decay,
        "adam_beta1": arguments.adam_beta1,
        "adam_beta2": arguments.adam_beta2,
        "adam_epsilon": arguments.adam_epsilon,
        "max_grad_norm": arguments.max_grad_norm,
        "lr_scheduler_type": arguments.scheduler,
        "warmup_steps": arguments.warmup_ratio,  # below 1 it is a share of all steps
        "bf16": uses_bf16(arguments),
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and world_size() > 1 else None,
        "ddp_find_unused_parameters": False,
        "deepspeed": arguments.deepspeed_file,
        "seed": arguments.seed,
        "dataloader_num_workers": arguments.workers,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_steps": arguments.logging_steps,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "log_level": "warning",
        "disable_tqdm": True,
        "report_to": arguments.report_to,
        "run_name": arguments.run_name or Path(str(arguments.output_dir)).name,
        "save_strategy": "steps" if arguments.save_steps else "no",
        "save_steps": arguments.save_steps or 1,
        "save_total_limit": arguments.save_total_limit,
    }
    # The name until transformers 5.22.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    values[checkpointing] = arguments.activation_checkpointing
    values[f"{checkpointing}_kwargs"] = {"use_reentrant": False} if arguments.activation_checkpointing else None
    return TrainingArguments(**values)


def start_wandb(arguments: TrainArguments) -> None:
    """Open the run that Trainer's callback will find, offline for a user who is not logged in (`wandb sync` sends it)."""
    if "wandb" not in arguments.report_to or not is_main_rank():
        return
    import wandb

    mode = None
    if "WANDB_MODE" not in os.environ:
        try:
            wandb.Api(timeout=1)
        except wandb.errors.UsageError:  # no key is configured
            mode = "offline"
    folder = Path(str(arguments.output_dir))
    project = os.environ.get("WANDB_PROJECT", "llava_prumerge")
    wandb.init(project=project, name=arguments.run_name or folder.name, dir=str(folder), mode=mode)
