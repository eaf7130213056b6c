"""One conversion: what the source is, what is made of it, and the listing of a dry run."""

from __future__ import annotations

from pathlib import Path

from llava_prumerge.ground.files import check_free, whole_folder
from llava_prumerge.model import tensor_files
from llava_prumerge.model.checkpoints.layout import (
    MODEL_FILE,
    Layout,
    Made,
    Parts,
    Whole,
    known_layouts,
    recognise_source,
    target_layout,
)
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.checkpoints.trained import merged
from llava_prumerge.model.tensor_files import Entry, Reader
from llava_prumerge.model.weight_files import LoadingError


def convert(request: Request) -> list[str]:
    """Convert. -> in a dry run a line for each tensor, otherwise what was written and where from

    Raises:
        LoadingError: with file and key; nothing is then left behind.
        HubError: a folder is neither here nor to be had from the Hub.
    """
    target = target_layout(request.to)
    if request.target is None and not request.dry_run:
        raise LoadingError("name the folder to make, or give --dry-run")
    if request.target is not None:
        check_free(request.target)
    request = request.of(request.source)
    made, target = _read(request, target)
    files = target.files(made, request)
    if request.dry_run:
        return [f"{'' if name == MODEL_FILE else f'{name}: '}{entry}" for name, all_ in files.items() for entry in all_]
    assert request.target is not None
    with whole_folder(request.target) as folder:
        for name, entries in files.items():
            _write(folder / name, entries, request.shard_bytes)
        target.write_beside(made, request, folder)
    taken = [f"{what} from {where}" for what, where in made.record.taken.items()]
    count = sum(map(len, files.values()))
    return [f"{request.target}: {count} tensors from {', '.join([request.called(request.source), *taken])}"]


def _read(request: Request, target: Layout) -> tuple[Made, Layout]:
    """What is made of the source, and the layout that writes it: the one asked for, and of a tower its own."""
    layout, kind = recognise_source(request.source)
    source = request.called(request.source)
    if not layout.is_target:
        if target.name != Request.to or request.merge:
            raise LoadingError(f"{source} is an {layout.name} checkpoint; it becomes {layout.becomes} and nothing else")
        return layout.read(request, kind), layout
    if layout is target and not request.merge and not request.dry_run:
        raise LoadingError(f"{source} is in the {target.name} layout already; --to takes another")
    made = layout.read(request, kind)
    if request.merge:
        if not isinstance(made, Parts):
            raise LoadingError(f"{source} is a whole model: there is nothing to merge")
        made = merged(made)
    for one in known_layouts().values():
        given = any(getattr(request, option) for option in one.own_options)
        if given and not (one is target and isinstance(made, Whole)):
            options = " and ".join(f"--{option.replace('_', '-')}" for option in one.own_options)
            raise LoadingError(f"{options} are for whole models that go --to {one.name}")
    return made, target


def _write(file: Path, entries: list[Entry], shard_bytes: int) -> None:
    """Write one weight file; merging reads from two files at a time, all else from one."""
    reader = Reader(2 if any(len(entry.sources) > 1 for entry in entries) else 1)
    if file.name == MODEL_FILE:
        tensor_files.write_model(file, entries, reader, shard_bytes)
    elif file.suffix == ".bin":
        tensor_files.write_pickled(file, entries, reader)
    else:
        tensor_files.write_tensors(file, entries, reader)
