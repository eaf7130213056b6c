"""The end of a run: its result written file by file, each whole, finished.json last; and the complete model of it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava_prumerge.ground.errors import naming
from llava_prumerge.ground.files import remove_folder, whole_folder, write_json
from llava_prumerge.ground.ranks import is_main_rank
from llava_prumerge.model.adapters import BASE_FILE, load_adapter, save_complete
from llava_prumerge.train.checkpoints import PREFIX, list_checkpoints, rotate
from llava_prumerge.train.preflight import FINISHED_FILE, MERGED_FOLDER, wants_merged
from llava_prumerge.train.stages import weights_dtype

if TYPE_CHECKING:
    from llava_prumerge.train.arguments import TrainArguments
    from llava_prumerge.train.trainer import LlavaTrainer

logger = logging.getLogger("llava_prumerge.train")

RESULT_FOLDER = ".result"  # of the run, while its files are about to get their places
LAST_FILES = ("config.json", BASE_FILE)  # without them nobody takes the folder for a model


def finish(arguments: TrainArguments, trainer: LlavaTrainer, started: float) -> None:
    """Write the result of a run that took its last step, and finished.json as the last file. All ranks take part.

    Args:
        started: time.perf_counter() at the start of this process's part of the run.

    Raises:
        FileError: a file cannot be written; the run's checkpoints are as they were, and the same command tries again.
    """
    run = Path(str(arguments.output_dir))
    if not is_main_rank():
        trainer.save_model()
        return
    names = save_result(trainer, run)
    last = run / f"{PREFIX}{trainer.state.global_step}"
    if last in list_checkpoints(run):  # a kill behind its writing has left older ones
        rotate(run, last, arguments.save_total_limit)
    if wants_merged(arguments):
        write_merged(arguments)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record = {"steps": trainer.state.global_step, "loss": losses[-1] if losses else None}
    record["seconds"] = round(time.perf_counter() - started, 1)
    write_json(run / FINISHED_FILE, record | {"files": names}, indent=None)
    logger.info("done: %s", run)


def save_result(trainer: LlavaTrainer, run: Path) -> list[str]:
    """Write what was trained aside, then give each file its place in the run's folder. -> their names"""
    aside = run / RESULT_FOLDER
    with whole_folder(aside, replace=True) as folder:
        trainer.save_model(str(folder))
    names = sorted((path.name for path in aside.iterdir()), key=lambda name: (name in LAST_FILES, name))
    with naming(run, "cannot be written"):
        for name in names:
            os.replace(aside / name, run / name)
    remove_folder(aside)
    return names


def write_merged(arguments: TrainArguments) -> None:
    """Write the complete model to OUTPUT_DIR/merged, from the files just saved: what is merged is what was stored."""
    unset_hf_deepspeed_config()  # ZeRO-3 would shard the model that rank 0 alone loads here
    folder = Path(str(arguments.output_dir))
    model, processor = load_adapter(folder, dtype=weights_dtype(arguments))
    with whole_folder(folder / MERGED_FOLDER, replace=True) as merged:
        save_complete(model, merged, None, processor)
    logger.info("complete model: %s", folder / MERGED_FOLDER)
