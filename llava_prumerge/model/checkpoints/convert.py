"""One conversion: what the source is, what is made of it, and the listing of a dry run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from llava_prumerge.ground.files import check_free
from llava_prumerge.model.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, BASE_FILE
from llava_prumerge.model.assembling import PROJECTOR_FILE
from llava_prumerge.model.checkpoints.configs import is_original
from llava_prumerge.model.checkpoints.parts_targets import plan_parts, write_parts
from llava_prumerge.model.checkpoints.request import Parts, Request, Whole
from llava_prumerge.model.checkpoints.targets import plan_whole, write_whole
from llava_prumerge.model.checkpoints.towers import plan_tower, read_tower, write_tower
from llava_prumerge.model.checkpoints.trained_parts import (
    ADAPTER_BIN,
    NON_LORA,
    merge,
    read_lora,
    read_our_parts,
    read_projector,
)
from llava_prumerge.model.checkpoints.weights import SAFETENSORS, has_weights, list_tensors, open_pickled, read_json
from llava_prumerge.model.checkpoints.whole import PROJECTOR_BIN, read_whole
from llava_prumerge.model.families import is_own_type
from llava_prumerge.model.open_clip import OpenClipFolder
from llava_prumerge.model.weight_files import LoadingError

LOGGER = logging.getLogger(__name__)
TARGETS = ("ours", "original", "llava-hf")
READERS: dict[str, Callable[[Request], Whole | Parts]] = {
    "whole-original": read_whole,
    "whole-ours": read_whole,
    "whole-llava-hf": read_whole,
    "parts-original": read_lora,
    "parts-ours": read_our_parts,
    "projector-original": read_projector,
    "projector-ours": read_projector,
}


def convert(request: Request) -> list[str]:
    """Convert. -> in a dry run a line for each tensor, otherwise what was written and where from

    Raises:
        LoadingError: with file and key; nothing is then left behind.
    """
    if request.to not in TARGETS:
        raise LoadingError(f"--to {request.to!r} is not one of {', '.join(TARGETS)}")
    if request.target is None and not request.dry_run:
        raise LoadingError("name the folder to make, or give --dry-run")
    if request.target is not None:
        check_free(request.target)
    kind = kind_of(request.source)
    if kind == "open_clip":
        return _convert_tower(request)
    if kind.endswith(f"-{request.to}") and not request.merge and not request.dry_run:
        raise LoadingError(f"{request.source} is in the {request.to} layout already; --to takes another")
    made = READERS[kind](request)
    if isinstance(made, Parts) and request.merge:
        made = merge(made)
    elif request.merge:
        raise LoadingError(f"{request.source} is a whole model: there is nothing to merge")
    if (request.with_vision or request.keep_rows) and (request.to != "original" or isinstance(made, Parts)):
        raise LoadingError("--with-vision and --keep-rows are for whole models that go --to original")
    if isinstance(made, Whole):
        lines = [str(entry) for entry in plan_whole(made, request)]
    else:
        lines = [f"{file}: {entry}" for file, entries in plan_parts(made, request).items() for entry in entries]
    if request.dry_run:
        return lines
    write_whole(made, request) if isinstance(made, Whole) else write_parts(made, request)
    taken = [f"{what} from {where}" for what, where in made.record.taken.items()]
    return [f"{request.target}: {len(lines)} tensors from {', '.join([str(request.source), *taken])}"]


def _convert_tower(request: Request) -> list[str]:
    if request.to != "ours" or request.merge:
        raise LoadingError(f"{request.source} is an open_clip checkpoint; it becomes a CLIP folder and nothing else")
    config, weights, pixels = read_tower(request)
    lines = plan_tower(weights)
    if request.dry_run:
        return lines
    write_tower(config, weights, pixels, request)
    return [f"{request.target}: {len(lines)} tensors from {request.source}"]


def kind_of(source: Path) -> str:
    """What a source is, by the files in it: a kind of READERS, or open_clip.

    Raises:
        LoadingError: nothing that can be converted.
    """
    if source.is_file():
        return _kind_of_file(source)
    if not source.is_dir():
        raise LoadingError(f"{source} does not exist; `hf download NAME --local-dir FOLDER` fetches a name of the Hub")
    holds = {file.name for file in source.iterdir()}
    if OpenClipFolder.is_one(source):
        return "open_clip"
    if BASE_FILE in holds:
        return "parts-ours"
    if holds & {ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTER_BIN, NON_LORA}:
        return "parts-original"
    if PROJECTOR_BIN in holds and not has_weights(source):
        return "projector-original"
    if PROJECTOR_FILE in holds and not has_weights(source):
        return "projector-ours"
    if "config.json" not in holds:
        raise LoadingError(f"{source} holds no config.json, no adapters, no projector and no open_clip model")
    config = read_json(source / "config.json")
    if is_original(config):
        return "whole-original"
    return "whole-ours" if is_own_type(config.get("model_type")) else "whole-llava-hf"


def _kind_of_file(file: Path) -> str:
    keys = [item.key for item in list_tensors(file)] if file.suffix == SAFETENSORS else list(open_pickled(file))
    if any("mm_projector." in str(key) for key in keys):
        return "projector-original"
    return "projector-ours" if any("multi_modal_projector." in str(key) for key in keys) else "open_clip"
