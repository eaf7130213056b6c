"""The plan of a conversion: each tensor of the result with its shape, its type and what it is made from.

A plan is checked key by key before anything is read or written; a dry run prints it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaConfig

from llava_prumerge.model.checkpoints.layouts import VOCABULARY, called, is_unused, key_of, names_of
from llava_prumerge.model.checkpoints.weights import Reader, Stored
from llava_prumerge.model.weight_files import LoadingError, name_first

ROWS_AT_ONCE = 4096  # rows that are raised to float64 together, for the mean row
Make = Callable[..., Tensor]


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
        made = read[0] if self.make is None else self.make(*read)
        made = made.to(self.dtype)
        if tuple(made.shape) != self.shape:
            raise LoadingError(f"{self.sources[0]} gave {tuple(made.shape)}; {self.key} is {self.shape}")
        return made

    def read_bytes(self, reader: Reader) -> memoryview:
        """Its bytes, without a copy where the file's own can serve."""
        return memoryview(self.tensor(reader).contiguous().flatten().view(torch.uint8).numpy())

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.key}  {list(self.shape)}  {kind}  <- {' + '.join(map(str, self.sources))}  ({self.how})"


Named = dict[str, Entry]
"""Entries by the parameters' names in our model; their keys are not yet those of the result."""


def shapes_of(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, without weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def match(tensors: Iterable[Stored], layout: str, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> Named:
    """Give the tensors of a checkpoint their names. The vocabulary may have any number of rows.

    Args:
        prefix: taken off each key first.

    Raises:
        LoadingError: a key the model does not have, one that comes twice, or one of another shape.
    """
    found: Named = {}
    for item in tensors:
        if is_unused(item.key, layout):
            continue
        names = [name for name in names_of(layout, item.key.removeprefix(prefix)) if name in shapes]
        if not names:
            raise LoadingError(f"{item} is no parameter of this model ({layout} layout)")
        name = names[0]
        if name in found:
            raise LoadingError(f"{item} and {found[name].sources[0]} are the same parameter, {name}")
        given, needed = (item.shape, shapes[name]) if name not in VOCABULARY else (item.shape[1:], shapes[name][1:])
        if given != needed:
            raise LoadingError(f"{item} is {item.shape}, the configuration makes it {shapes[name]}")
        found[name] = Entry(name, item.shape, item.dtype, (item,))
    return found


def check_complete(found: Named, shapes: Mapping[str, tuple[int, ...]], where: str, layouts: tuple[str, ...]) -> None:
    """Refuse a result that lacks parameters.

    Args:
        layouts: of the sources, to name what is missing as its files would.

    Raises:
        LoadingError: with the first names that are missing and where they should have come from.
    """
    missing = [name for name in shapes if name not in found]
    if missing:
        raise LoadingError(f"{where} lacks {name_first([called(name, layouts) for name in missing])}")


def with_rows(entry: Entry, rows: int) -> Entry:
    """An embedding or output matrix with so many rows: new ones are the mean of those there are, superfluous ones go.

    llava-hf drew new rows around the mean at random; the mean itself makes the same checkpoint every time. [S, D] -> [rows, D]
    """
    have = entry.shape[0]
    if have == rows:
        return entry
    how = f"rows {have} -> {rows}" + ("" if rows < have else ", new ones their mean")
    return replace(entry, shape=(rows, *entry.shape[1:]), how=how, make=lambda weight: _resized(weight, rows))


def _resized(weight: Tensor, rows: int) -> Tensor:
    if rows <= len(weight):
        return weight[:rows]
    mean = sum(part.double().sum(0) for part in weight.split(ROWS_AT_ONCE)) / len(weight)
    grown = weight.new_empty(rows, *weight.shape[1:])
    grown[: len(weight)], grown[len(weight) :] = weight, mean.to(weight.dtype)
    return grown


def with_vocabulary(found: Named, rows: int) -> Named:
    """All entries, the two of the vocabulary with so many rows."""
    return {name: with_rows(entry, rows) if name in VOCABULARY else entry for name, entry in found.items()}


def with_dtype(found: Named, dtype: torch.dtype | None) -> Named:
    """All entries in one floating-point type; None leaves each as it is stored, bit for bit."""
    if dtype is None:
        return found
    cast = {}
    for name, entry in found.items():
        how = entry.how if entry.dtype == dtype else f"{entry.how}, cast".removeprefix("as it is, ")
        cast[name] = replace(entry, dtype=dtype, how=how) if entry.dtype.is_floating_point else entry
    return cast


def with_keys(found: Named, layout: str) -> list[Entry]:
    """The result's entries under a layout's keys, in the order they lie in their files (so each file is opened once)."""
    entries = [replace(entry, key=key_of(layout, name)) for name, entry in found.items()]
    files: dict[Path, int] = {}
    for entry in entries:
        files.setdefault(entry.sources[0].file, len(files))
    return sorted(entries, key=lambda entry: files[entry.sources[0].file])
