"""Train one stage.

    llava-prumerge train RECIPE [METHOD] [key=value ...] [--dry-run | --check]

RECIPE is one that ships (pretrain, finetune, finetune_lora, finetune_qlora, pocket/finetune, ...) or a file; METHOD likewise,
and without one no visual token is dropped. Files merge left to right, key=value comes last. --dry-run shows what would train,
on what, for how many steps and in how much memory, also before anything is downloaded; --check only verifies that
everything the recipe names exists. One process: on several GPUs or hosts the scripts start this command under torchrun,
as `python -m llava_prumerge.train.run`.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.ground import process, shipped
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.ranks import is_main_rank, world_size
from llava_prumerge.model.devices import (
    choose_device,
    describe_start,
    hide_gpus,
    keep_one_gpu,
    was_said,
)
from llava_prumerge.train.arguments import (
    RecipeError,
    TrainArguments,
    accumulation_steps,
    describe_arguments,
    load_arguments,
)
from llava_prumerge.train.model_parts import check_parts
from llava_prumerge.train.preflight import (
    FINISHED_FILE,
    MERGED_FOLDER,
    check_inputs,
    check_output_dir,
    check_ranks,
    find_resume_point,
    is_finished,
    wants_merged,
)

if TYPE_CHECKING:
    from llava_prumerge.train.trainer import LlavaTrainer

logger = logging.getLogger("llava_prumerge.train")


def make_parser() -> Parser:
    """The options beside the recipe."""
    parser = Parser("llava_prumerge.train.run", f"{__doc__}\n{describe_arguments()}", settings=None)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="a recipe, a method; their names, or paths of YAML files"
    )
    parser.add_argument("--method", help="a name, a file or a block; the same as a method among the files")
    parser.add_argument("--dry-run", action="store_true", help="show what would train")
    parser.add_argument("--check", action="store_true", help="verify that everything the recipe names exists")
    return parser


@command(interrupted="interrupted; the same command continues from the newest checkpoint")
def main(words: list[str]) -> int:
    """Run the command line. -> exit status: 0 done or stopped by SIGTERM"""
    given = make_parser().parse_args(words)
    if not given.files and not given.settings:
        raise RecipeError(f"name a recipe, such as {' or '.join(shipped.names('train')[:2])}, or one of your own")
    method = [] if given.method is None else [f"method={given.method}"]
    arguments = load_arguments([*given.files, *method, *given.settings])
    check(arguments, inputs=not given.dry_run)
    if given.check:
        return 0
    hide_gpus(asked_device(arguments))
    process.prepare()
    action = dry_run if given.dry_run else train
    if action is train and is_finished(arguments):
        if not wants_merged(arguments) or (Path(str(arguments.output_dir)) / MERGED_FOLDER).exists():
            print(f"{arguments.output_dir}: this run has ended; nothing to do")
            return 0
        action = merge
    quieten_libraries()
    return action(arguments)


def quieten_libraries() -> None:
    """Keep the console for the run: before anything heavy is imported."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other, one per step
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for one on import and warns that it found none


def check(arguments: TrainArguments, inputs: bool = True) -> None:
    """Refuse everything that can be refused without torch; `inputs` that are missing, too."""
    check_parts(arguments)
    accumulation_steps(arguments, world_size())
    if inputs:
        check_inputs(arguments)
    check_output_dir(arguments)
    find_resume_point(arguments)


def asked_device(arguments: TrainArguments) -> str | None:
    """The device that the recipe asks for; None where it leaves the choice."""
    return None if arguments.device == "auto" else arguments.device


def dry_run(arguments: TrainArguments) -> int:
    """Print the plan."""
    from llava_prumerge.train.dry_run import describe_run

    print(describe_run(arguments, world_size()))
    return 0


def train(arguments: TrainArguments) -> int:
    """Train, save, and leave a record that the run has ended; or save a checkpoint and leave, when SIGTERM says so."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from llava_prumerge.train.assembly import build_trainer
    from llava_prumerge.train.preemption import StopOnSignal
    from llava_prumerge.train.progress import NothingLeft
    from llava_prumerge.train.provenance import write_provenance
    from llava_prumerge.train.settings import start_wandb

    level = logging.INFO if is_main_rank() else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("llava_prumerge").setLevel(level)
    started = time.perf_counter()
    keep_one_gpu()
    device = choose_device(asked_device(arguments))
    if is_main_rank() and not was_said():
        logger.info(describe_start(device))
    with StopOnSignal() as stop:
        trainer = build_trainer(arguments, callbacks=[stop])
        resume = agree_on_resume_point(arguments)
        if is_main_rank():  # only now: a run that could not be built leaves no mark on its folder
            backend = trainer.accelerator.distributed_type.name  # NO, MULTI_GPU, DEEPSPEED, ...
            write_provenance(arguments, world_size(), trainer.args.gradient_accumulation_steps, backend)
        start_wandb(arguments)
        with contextlib.suppress(NothingLeft):
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if stop.stopped_at is not None and stop.stopped_at < trainer.state.max_steps:
        logger.info("stopped at step %d; the same command continues", stop.stopped_at)
    else:
        finish(arguments, trainer, started)
    unset_hf_deepspeed_config()  # a later run of this process must not be sharded while it is put together
    return 0


def agree_on_resume_point(arguments: TrainArguments) -> Path | None:
    """The newest sound checkpoint, read and hashed by all ranks together, with a word on those that were passed over."""
    from llava_prumerge.train.ranks import checkpoints_together, fault_together

    resume, skipped = find_resume_point(arguments, fault_together, checkpoints_together)
    for checkpoint, fault in skipped if is_main_rank() else []:
        logger.warning("skipping %s: %s", checkpoint, fault)
    if resume is not None:
        check_ranks(resume, arguments, world_size())
        logger.info("resuming from %s", resume)
    elif skipped:
        logger.warning("no checkpoint is left to resume from: starting at step 0")
    return resume


def finish(arguments: TrainArguments, trainer: LlavaTrainer, started: float) -> None:
    """Write the result of a run that took its last step, and finished.json as the last file.

    Args:
        started: time.perf_counter() at the start of this process's part of the run.
    """
    from llava_prumerge.train.assembly import write_merged

    trainer.save_model()
    if is_main_rank():
        if wants_merged(arguments):
            write_merged(arguments)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        record = {"steps": trainer.state.global_step, "loss": losses[-1] if losses else None}
        record["seconds"] = round(time.perf_counter() - started, 1)
        write_json(Path(str(arguments.output_dir)) / FINISHED_FILE, record, indent=None)
        logger.info("done: %s", arguments.output_dir)


def merge(arguments: TrainArguments) -> int:
    """Write the complete model of a run that has ended without one."""
    from llava_prumerge.train.assembly import write_merged

    if is_main_rank():
        write_merged(arguments)
    return 0


def leave_process_group() -> None:
    """Leave together with the other ranks: gloo now and then aborts a process that goes while another still works."""
    if "torch" in sys.modules:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    status = main()
    if status == 0:  # after an error the others may be waiting for this rank; torchrun ends them
        leave_process_group()
    sys.exit(status)
