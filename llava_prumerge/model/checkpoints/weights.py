"""Weight files read lazily: what is in them without reading it, then one tensor at a time; safetensors or `.bin`."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_prumerge.model import weight_files
from llava_prumerge.model.weight_files import LoadingError, name_first

LOGGER = logging.getLogger(__name__)
DTYPES = {  # by their names in safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS, PICKLED = ".safetensors", (".bin", ".pt")
WHOLE_STEMS = (("model", SAFETENSORS), ("pytorch_model", ".bin"))  # the order transformers looks in


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read.

    Attributes:
        file: a config.json where nothing but that is there, in a dry run.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"


def check_weight_file(file: Path) -> None:
    """Refuse what is no weight file at all, in words that say what it is.

    Raises:
        LoadingError: missing, a folder, empty, truncated, a Git LFS pointer, or no format that is read here.
    """
    with _as_checkpoint_error():
        weight_files.check_weight_file(file)
    if file.suffix not in (SAFETENSORS, *PICKLED):
        raise LoadingError(f"{file} is no weight file: {SAFETENSORS}, {' and '.join(PICKLED)} are read")


@contextlib.contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except LoadingError as error:
        raise LoadingError(str(error)) from error


def open_pickled(file: Path) -> dict[str, Any]:
    """A `.bin` as a mapping of mapped tensors: only what is used is read. Never runs code from the file."""
    check_weight_file(file)
    with _as_checkpoint_error():
        return weight_files.open_pickled(file)


def open_safetensors(file: Path) -> Any:
    """A safetensors file, mapped."""
    check_weight_file(file)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise LoadingError(f"{file} is truncated or no safetensors file: {error}") from error


def list_tensors(file: Path) -> list[Stored]:
    """What a weight file holds, in its order.

    Raises:
        LoadingError: the file cannot be read, or holds something that is not a tensor.
    """
    if file.suffix == SAFETENSORS:
        opened = open_safetensors(file)
        found = []
        for key in opened.keys():  # noqa: SIM118  (no mapping)
            piece = opened.get_slice(key)
            if piece.get_dtype() not in DTYPES:
                raise LoadingError(f"{file}: {key} is {piece.get_dtype()}; read are {', '.join(DTYPES)}")
            found.append(Stored(key, tuple(piece.get_shape()), DTYPES[piece.get_dtype()], file))
        return found
    found = []
    for key, value in open_pickled(file).items():
        if not isinstance(value, Tensor):
            raise LoadingError(f"{file}: {key} is a {type(value).__name__}, not a tensor")
        found.append(Stored(str(key), tuple(value.shape), value.dtype, file))
    return found


class Reader:
    """Reads tensors, and keeps so few files open that no more than those are ever in memory.

    Attributes:
        limit: files open at a time; the one that was used longest ago is closed first.
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, Callable[[str], Tensor]] = OrderedDict()

    def read(self, stored: Stored) -> Tensor:
        """The tensor, mapped from its file where the format allows it.

        Raises:
            LoadingError: its file cannot be read, or it holds values that are not finite.
        """
        if stored.file.suffix == ".json":
            raise LoadingError(f"{stored} is known from the configuration alone; there are no weights to read")
        if stored.file not in self._open:
            while len(self._open) >= self.limit:
                self._open.popitem(last=False)
            if stored.file.suffix == SAFETENSORS:
                self._open[stored.file] = open_safetensors(stored.file).get_tensor
            else:
                self._open[stored.file] = open_pickled(stored.file).__getitem__
        self._open.move_to_end(stored.file)
        tensor = self._open[stored.file](stored.key)
        if not weight_files.is_finite(tensor):
            raise LoadingError(f"{stored} holds values that are NaN or infinite")
        return tensor


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        LoadingError: missing, or no JSON object.
    """
    if not file.is_file():
        raise LoadingError(f"{file} does not exist")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadingError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadingError(f"{file} holds a {type(value).__name__}, not an object")
    return value


def has_weights(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model, complete or not."""
    return any(any(folder.glob(f"{stem}*{suffix}*")) for stem, suffix in WHOLE_STEMS)


def list_model(folder: Path) -> list[Stored]:
    """The tensors of a whole model's folder: one file, or shards that agree with their index.

    Raises:
        LoadingError: no weights, a shard that is missing or damaged, or shards and index that are not of one checkpoint.
    """
    found = []
    for stem, suffix in WHOLE_STEMS:
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.is_file():
            found.append((suffix, index))
        elif single.is_file():
            found.append((suffix, single))
        elif shards := sorted(folder.glob(f"{stem}-*-of-*{suffix}")):
            raise LoadingError(f"{folder} holds {shards[0].name} and {index.name}, which says what else, is missing")
    if not found:
        names = [f"{stem}{suffix}" for stem, suffix in WHOLE_STEMS]
        raise LoadingError(f"{folder} holds no weights: neither {' nor '.join(names)}, in one file or in shards")
    if len(found) > 1:
        LOGGER.info("%s holds its weights twice; %s is taken", folder, found[0][1].name)
    start = found[0][1]
    return list_shards(start) if start.suffix == ".json" else list_tensors(start)


def list_shards(index: Path) -> list[Stored]:
    """The tensors of the shards that an index names, each in the shard where the index places it."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise LoadingError(f"{index} has no weight_map")
    by_file: dict[str, list[str]] = {}
    for key, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise LoadingError(f"{index} places {key} in {name!r}, which is no file beside it")
        by_file.setdefault(name, []).append(key)
    found: list[Stored] = []
    for name in sorted(by_file):
        file, keys = index.parent / name, by_file[name]
        if not file.is_file():
            raise LoadingError(f"{file} does not exist; {index.name} places {name_first(keys)} there")
        try:
            tensors = list_tensors(file)
        except LoadingError as error:
            raise LoadingError(f"{error} ({index.name} places {name_first(keys)} there)") from error
        _compare(index, file, keys, [item.key for item in tensors])
        found += tensors
    return found


def _compare(index: Path, file: Path, placed: Iterable[str], held: Iterable[str]) -> None:
    held_set, placed_set = set(held), set(placed)
    for word, keys in (("lacks", placed_set - held_set), ("holds", held_set - placed_set)):
        if keys:
            tail = "which the index places there" if word == "lacks" else "which the index does not place there"
            raise LoadingError(
                f"{file} {word} {name_first(sorted(keys))}, {tail}: {index.name} is of another checkpoint"
            )
