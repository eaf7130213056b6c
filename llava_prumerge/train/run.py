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
from llava_prumerge.ground.command import INTERRUPTED, Parser, command
from llava_prumerge.ground.locks import hold
from llava_prumerge.ground.ranks import is_main_rank, world_size
from llava_prumerge.methods.plugins import add_plugin_option, plugin_settings
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
    MERGED_FOLDER,
    check_inputs,
    check_output_dir,
    check_ranks,
    find_resume_point,
    is_finished,
    wants_merged,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llava_prumerge.train.origin import Binding

logger = logging.getLogger("llava_prumerge.train")


def make_parser() -> Parser:
    """The options beside the recipe."""
    parser = Parser("llava_prumerge.train.run", f"{__doc__}\n{describe_arguments()}", settings=None)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="a recipe, a method; their names, or paths of YAML files"
    )
    parser.add_argument("--method", help="a name, a file or a block; the same as a method among the files")
    add_plugin_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would train")
    parser.add_argument("--check", action="store_true", help="verify that everything the recipe names exists")
    return parser


@command(interrupted="interrupted; the same command continues from the newest checkpoint")
def main(words: list[str]) -> int:
    """Run the command line. -> exit status: 0 done or stopped by SIGTERM, 130 stopped by Ctrl-C"""
    given = make_parser().parse_args(words)
    if not given.files and not given.settings:
        raise RecipeError(f"name a recipe, such as {' or '.join(shipped.names('train')[:2])}, or one of your own")
    method = [] if given.method is None else [f"method={given.method}"]
    arguments = load_arguments([*given.files, *method, *given.settings, *plugin_settings(given)])
    check(arguments, inputs=not given.dry_run)
    if given.check:
        return 0
    hide_gpus(asked_device(arguments))
    process.prepare()
    action = dry_run if given.dry_run else train
    if action is train and is_finished(arguments):
        bind(arguments)
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
    """Train, save, and leave a record that the run has ended; or save a checkpoint and leave, when a signal says so."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from llava_prumerge.train.assembly import build_trainer
    from llava_prumerge.train.preemption import StopOnSignal
    from llava_prumerge.train.progress import NothingLeft
    from llava_prumerge.train.provenance import write_provenance
    from llava_prumerge.train.result import finish
    from llava_prumerge.train.settings import start_wandb

    start_log()
    started = time.perf_counter()
    keep_one_gpu()
    device = choose_device(asked_device(arguments))
    if is_main_rank() and not was_said():
        logger.info(describe_start(device))
    with hold_run(arguments), StopOnSignal() as stop:
        binding = bind(arguments) if is_main_rank() else None
        trainer = build_trainer(arguments, callbacks=[stop], origin=None if binding is None else binding.now)
        resume = agree_on_resume_point(arguments)
        if binding is not None:  # only now: a run that could not be built leaves no mark on its folder
            accepted = binding.check(resume)
            for change in accepted:
                logger.warning("accepted: %s", change)
            backend = trainer.accelerator.distributed_type.name  # NO, MULTI_GPU, DEEPSPEED, ...
            steps = trainer.args.gradient_accumulation_steps
            write_provenance(arguments, world_size(), steps, backend, binding.now, accepted)
        start_wandb(arguments)
        with contextlib.suppress(NothingLeft):
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        stopped = stop.stopped_at is not None and stop.stopped_at < trainer.state.max_steps
        if not stopped:
            finish(arguments, trainer, started)
    if stopped:
        logger.info("stopped at step %d; the same command continues", stop.stopped_at)
    unset_hf_deepspeed_config()  # a later run of this process must not be sharded while it is put together
    return INTERRUPTED if stopped and stop.interrupted else 0


def start_log() -> None:
    """Messages with their time; of other ranks than the first, warnings alone."""
    level = logging.INFO if is_main_rank() else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("llava_prumerge").setLevel(level)


@contextlib.contextmanager
def hold_run(arguments: TrainArguments) -> Iterator[None]:
    """Keep other processes out of the run's folder, and remove the folder if nothing came of it."""
    folder = Path(str(arguments.output_dir))
    if not is_main_rank():
        yield
        return
    try:
        with hold(folder, inside=True) as left:
            if left is not None:
                logger.info(left)
            yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def bind(arguments: TrainArguments) -> Binding:
    """What this start is made from, compared with what it will most likely go on from, before minutes of loading."""
    from llava_prumerge.train.origin import Binding, describe_origin

    binding = Binding(arguments, describe_origin(arguments))
    binding.check(find_resume_point(arguments)[0])
    return binding


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


def merge(arguments: TrainArguments) -> int:
    """Write the complete model of a run that has ended without one."""
    from llava_prumerge.train.result import write_merged

    start_log()
    with hold_run(arguments):
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
