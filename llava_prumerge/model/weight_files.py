"""Weight files: whether one is what its name says before it is read, and whether what it holds fits and is finite."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.reading import read_json_object

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = ".safetensors"
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")  # the order transformers looks in; shards have an index beside
LFS_POINTER = b"version https://git-lfs"
SHOWN = 5
_ZIP, _OLD_PICKLE = b"PK\x03\x04", b"\x80\x02"  # how a file of torch.save begins
_LENGTH = 8  # bytes of a safetensors file that say how long its header is
_LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
_Shapes = Mapping[str, tuple[int, ...]]


class LoadingError(InputError):
    """A folder, file or setting that no model can be made from; the message names it in one line."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file that has not been read.

    Attributes:
        dtype: as safetensors calls it, such as "BF16".
        shape: of the tensor.
        begin: position of its first byte in the file.
        end: position after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_weight_file(file: Path) -> None:
    """Refuse a weight file that is none, or not whole, without reading its weights.

    Raises:
        LoadingError: the file is missing, a folder, empty, a Git LFS pointer, or (safetensors) truncated or damaged.
    """
    if file.is_dir():
        raise LoadingError(f"{file} is a folder, expected a weight file")
    if not file.is_file():
        raise LoadingError(f"{file} does not exist")
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
    except OSError as error:
        raise LoadingError(f"{file} cannot be read: {error.strerror or error}") from error
    if not start:
        raise LoadingError(f"{file} is empty")
    if start == LFS_POINTER:
        raise LoadingError(f"{file} is a Git LFS pointer and not the weights: `git lfs pull` fetches them")
    if file.suffix == SAFETENSORS:
        read_header(file)


def read_header(file: Path) -> dict[str, Entry]:
    """What a safetensors file holds, by key, from its header alone.

    Raises:
        LoadingError: the file is truncated or is no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH), "little")
            if size < _LENGTH or length > _LONGEST_HEADER:
                raise LoadingError(f"{file} is no safetensors file ({size:,} bytes)")
            start = _LENGTH + length
            if size < start:
                raise LoadingError(f"{file} is truncated: {size:,} bytes, its header alone takes {start:,}")
            header = json.loads(opened.read(length))
    except OSError as error:
        raise LoadingError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, LoadingError):
            raise
        raise LoadingError(f"{file} is damaged or no safetensors file: its header is no JSON") from error
    try:
        header.pop("__metadata__", None)
        found = {key: _entry(value, start) for key, value in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LoadingError(f"{file} is damaged or no safetensors file: its header lists no tensors") from error
    needed = max((entry.end for entry in found.values()), default=start)
    if size != needed:
        what = "truncated" if size < needed else "damaged"
        raise LoadingError(f"{file} is {what}: {size:,} bytes, its header says {needed:,}")
    return found


def _entry(value: dict[str, Any], start: int) -> Entry:
    begin, end = value["data_offsets"]
    if not 0 <= begin <= end:
        raise ValueError("a tensor that ends before it begins")
    return Entry(str(value["dtype"]), tuple(map(int, value["shape"])), start + begin, start + end)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all of them finite.

    Raises:
        LoadingError: it cannot be read, or holds a value that is NaN or infinite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_weight_file(file)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadingError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    check_finite(weights.items(), str(file))
    return weights


def open_pickled(file: Path) -> dict[str, Any]:
    """The content of a file of `torch.save`, mapped where the format allows it: only what is used is read. Runs no code from the file.

    Raises:
        LoadingError: it cannot be read, or holds something else than named values.
    """
    import torch

    check_weight_file(file)
    zipped = zipfile.is_zipfile(file)
    if not zipped:
        with file.open("rb") as opened:
            start = opened.read(len(_ZIP))
        if not start.startswith(_OLD_PICKLE):
            what = "truncated" if start == _ZIP else "no file of torch.save"
            raise LoadingError(f"{file} is {what}: it cannot be read")
    try:  # files older than PyTorch 1.6 cannot be mapped
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LoadingError(f"{file} is damaged or holds more than tensors: {reason}") from error
    if not isinstance(loaded, dict):
        raise LoadingError(f"{file} holds a {type(loaded).__name__}, not tensors by name")
    return loaded


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite: one pass without a copy, several times faster than `isfinite`."""
    if not tensor.numel() or not tensor.is_floating_point() or tensor.is_meta:
        return True
    if tensor.element_size() == 1:  # 8-bit floats have no minimum and maximum
        return bool(tensor.float().isfinite().all())
    least, most = tensor.detach().aminmax()  # both are NaN where one value is
    return bool(least.isfinite()) and bool(most.isfinite())


def check_finite(weights: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        weights: names and tensors.
        where: the file or folder they come from.

    Raises:
        LoadingError: with the first of the names.
    """
    wrong = [name for name, tensor in weights if not is_finite(tensor)]
    if wrong:
        raise LoadingError(f"{where} holds weights that are NaN or infinite: {name_first(wrong)}")


def check_fit(found: _Shapes, needed: _Shapes, where: str) -> None:
    """Refuse tensors that are not exactly those that a model, or a part of one, has.

    Args:
        found: shapes by key, as stored.
        needed: shapes by key, as the model has them.
        where: the file or folder they come from.

    Raises:
        LoadingError: some are missing, unknown, or of another shape; with the first of the keys.
    """
    shared = [key for key in needed if key in found]
    misshapen = [f"{key} {found[key]} (needed {needed[key]})" for key in shared if found[key] != needed[key]]
    missing, unknown = [key for key in needed if key not in found], [key for key in found if key not in needed]
    faults = [("lacks", missing), ("has unknown", unknown), ("has misshapen", misshapen)]
    told = [f"{word} weights: {name_first(keys)}" for word, keys in faults if keys]
    if told:
        raise LoadingError(f"{where} {'; '.join(told)}")


def name_first(keys: Iterable[str]) -> str:
    """The first few of some keys, in order, and how many there are."""
    keys = sorted(keys)
    return f"{', '.join(keys[:SHOWN])}{' ...' * (len(keys) > SHOWN)} ({len(keys)} in all)"


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by key."""
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        LoadingError: missing, or no JSON object.
    """
    try:
        return read_json_object(file)
    except FileError as error:
        raise LoadingError(str(error)) from error


def find_whole(folder: Path) -> Path | None:
    """The file that a whole model's weights begin with, the one that transformers would read: weights, or an index of shards."""
    found = (folder / f"{name}{ending}" for name in WHOLE_FILES for ending in ("", ".index.json"))
    return next((file for file in found if file.exists()), None)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model, complete or not."""
    return any(any(folder.glob(name.replace(".", "*.") + "*")) for name in WHOLE_FILES)


def read_index(index: Path) -> dict[str, list[str]]:
    """The keys of each shard that an index names.

    Raises:
        LoadingError: the file cannot be read, or names what does not lie beside it.
    """
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise LoadingError(f"{index} is no index of shards: it needs a weight_map of file names")
    found: dict[str, list[str]] = {}
    for key, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise LoadingError(f"{index} places {key} in {name!r}; shards lie beside their index")
        found.setdefault(name, []).append(key)
    return found


def whole_files(folder: Path) -> list[Path]:
    """The weight files of a whole model's folder that transformers would read; none where it holds none.

    Raises:
        LoadingError: the index of the shards cannot be read.
    """
    start = find_whole(folder)
    if start is None or start.suffix != ".json":
        return [] if start is None else [start]
    return [folder / shard for shard in sorted(read_index(start))]


def check_whole_files(folder: Path) -> None:
    """Refuse a folder of a whole model one of whose weight files is missing or not whole, by that file's name."""
    for file in whole_files(folder):
        check_weight_file(file)
