"""Tensors of weight files one at a time: listed without being read, read, made into others, and written; in shards where asked."""

from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_prumerge.ground.files import write_json
from llava_prumerge.model.weight_files import (
    SAFETENSORS,
    WHOLE_FILES,
    LoadingError,
    check_weight_file,
    find_whole,
    is_finite,
    name_first,
    open_pickled,
    read_header,
    read_index,
)

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
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PICKLED = (".bin", ".pt")
Make = Callable[..., Tensor]


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


def list_tensors(file: Path) -> list[Stored]:
    """What a weight file holds, in its order.

    Raises:
        LoadingError: the file cannot be read, or holds something that is not a tensor of a known type.
    """
    check_weight_file(file)
    if file.suffix == SAFETENSORS:
        header = read_header(file)
        odd = next((key for key, entry in header.items() if entry.dtype not in DTYPES), None)
        if odd is not None:
            raise LoadingError(f"{file}: {odd} is {header[odd].dtype}; read are {', '.join(DTYPES)}")
        return [Stored(key, entry.shape, DTYPES[entry.dtype], file) for key, entry in header.items()]
    found = []
    for key, value in _pickled(file).items():
        if not isinstance(value, Tensor):
            raise LoadingError(f"{file}: {key} is a {type(value).__name__}, not a tensor")
        found.append(Stored(str(key), tuple(value.shape), value.dtype, file))
    return found


def _pickled(file: Path) -> dict[str, Any]:
    """The tensors of a pickled file, mapped; training of open_clip wraps them in a dictionary with the epoch."""
    if file.suffix not in PICKLED:
        raise LoadingError(f"{file} is no weight file: {SAFETENSORS}, {' and '.join(PICKLED)} are read")
    loaded = open_pickled(file)
    inner = loaded.get("state_dict")
    return inner if isinstance(inner, dict) else loaded


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
            self._open[stored.file] = self._opened(stored.file)
        self._open.move_to_end(stored.file)
        tensor = self._open[stored.file](stored.key)
        if not is_finite(tensor):
            raise LoadingError(f"{stored} holds values that are NaN or infinite")
        return tensor

    @staticmethod
    def _opened(file: Path) -> Callable[[str], Tensor]:
        if file.suffix != SAFETENSORS:
            return _pickled(file).__getitem__
        check_weight_file(file)
        try:
            get: Callable[[str], Tensor] = safe_open(file, framework="pt", device="cpu").get_tensor
        except (SafetensorError, OSError) as error:
            raise LoadingError(f"{file} is truncated or no safetensors file: {error}") from error
        return get


def list_model(folder: Path) -> list[Stored]:
    """The tensors of a whole model's folder: one file, or shards that agree with their index.

    Raises:
        LoadingError: no weights, a shard that is missing or damaged, or shards and index that are not of one checkpoint.
    """
    start = find_whole(folder)
    if start is None:
        for stem, _, suffix in (name.partition(".") for name in WHOLE_FILES):
            for shard in sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
                lacking = f"{stem}.{suffix}.index.json, which says what else, is missing"
                raise LoadingError(f"{folder} holds {shard.name} and {lacking}")
        names = " nor ".join(WHOLE_FILES)
        raise LoadingError(f"{folder} holds no weights: neither {names}, in one file or in shards")
    return _list_shards(start) if start.suffix == ".json" else list_tensors(start)


def _list_shards(index: Path) -> list[Stored]:
    """The tensors of the shards that an index names, each in the shard where the index places it."""
    found: list[Stored] = []
    for name, keys in sorted(read_index(index).items()):
        try:
            tensors = list_tensors(index.parent / name)
        except LoadingError as error:
            raise LoadingError(f"{error} ({index.name} places {name_first(keys)} there)") from error
        placed, held = set(keys), {item.key for item in tensors}
        for word, wrong, negated in (("lacks", placed - held, ""), ("holds", held - placed, "does not ")):
            if wrong:
                what = f"{name_first(wrong)}, which the index {negated}place{'' if negated else 's'} there"
                raise LoadingError(f"{index.parent / name} {word} {what}: {index.name} is of another checkpoint")
        found += tensors
    return found


@dataclass(frozen=True)
class Entry:
    """One tensor of the result.

    Attributes:
        key: what the result calls it.
        sources: what it is made from.
        how: in words, for the listing.
        make: from the sources to the tensor; None where the one source is taken as it is.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[Stored, ...]
    how: str = "as it is"
    make: Make | None = None

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self, reader: Reader) -> Tensor:
        """Read and make it.

        Raises:
            LoadingError: what was made is not what was planned.
        """
        read = [reader.read(source) for source in self.sources]
        made = (read[0] if self.make is None else self.make(*read)).to(self.dtype)
        if tuple(made.shape) != self.shape:
            raise LoadingError(f"{self.sources[0]} gave {tuple(made.shape)}; {self.key} is {self.shape}")
        return made

    def read_bytes(self, reader: Reader) -> memoryview:
        """Its bytes, without a copy where the file's own can serve."""
        return self.tensor(reader).contiguous().flatten().view(torch.uint8).numpy().data

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.key}  {list(self.shape)}  {kind}  <- {' + '.join(map(str, self.sources))}  ({self.how})"


def write_model(file: Path, entries: list[Entry], reader: Reader, shard_bytes: int) -> None:
    """Write weights as transformers names them: `file`, or shards and their index beside it."""
    groups = split(entries, shard_bytes)
    files = [file]
    if len(groups) > 1:
        names = [f"{file.stem}-{n:05d}-of-{len(groups):05d}{file.suffix}" for n in range(1, len(groups) + 1)]
        files = [file.with_name(name) for name in names]
        index = {
            "metadata": {"total_size": sum(entry.bytes for entry in entries)},
            "weight_map": {entry.key: name for name, group in zip(names, groups, strict=True) for entry in group},
        }
        write_json(file.with_name(f"{file.name}.index.json"), index)
    for one, group in zip(files, groups, strict=True):
        write_tensors(one, group, reader)


def split(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Cut a list into shards of at most so many bytes, in order; a larger tensor has a shard of its own."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + entry.bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.bytes
    return groups


def write_pickled(file: Path, entries: list[Entry], reader: Reader) -> None:
    """Write a `.bin` of `torch.save`, for code that reads nothing else; all of it is in memory at once."""
    torch.save({entry.key: entry.tensor(reader).clone() for entry in entries}, file)


def write_tensors(file: Path, entries: list[Entry], reader: Reader) -> None:
    """Write one safetensors file, holding one tensor at a time.

    The format is a header (its length in eight bytes, then JSON with each tensor's type, shape and place) and the bytes of the
    tensors without gaps; wide types come first, so that each begins at a multiple of its size.
    """
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        span = [place, place + entry.bytes]
        header[entry.key] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        place = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            opened.write(entry.read_bytes(reader))
