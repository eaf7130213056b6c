"""The plan of a conversion: what each tensor is called here and there, and each tensor of the result with its source.

A plan is checked key by key before anything is read or written; a dry run prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from llava_prumerge.model.tensor_files import Entry, Stored
from llava_prumerge.model.weight_files import LoadingError, name_first

TEXT, HEAD = "model.language_model.", "lm_head."
TOWER, PROJECTOR, REDUCER = "model.vision_tower.", "model.multi_modal_projector.", "model.reducer."
VOCABULARY = (TEXT + "embed_tokens.weight", HEAD + "weight")
UNUSED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")  # computed, not learned
ROWS_AT_ONCE = 4096  # rows that are raised to float64 together, for the mean row
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Keys:
    """How files call the parameters of `PruMergeLlavaForConditionalGeneration`.

    Attributes:
        name: of these keys, for messages.
        prefixes: theirs and ours; the first of a parameter is the one that is written.
        idle: how keys begin that may lie there although no parameter comes from them.
    """

    name: str
    prefixes: tuple[tuple[str, str], ...]
    idle: tuple[str, ...] = ()

    def names_of(self, key: str) -> list[str]:
        """What a key may be called in our model, likeliest first; nothing for a key of another kind."""
        return [ours + key.removeprefix(theirs) for theirs, ours in self.prefixes if key.startswith(theirs)]

    def key_of(self, name: str) -> str:
        """What a parameter of ours is called here.

        Raises:
            LoadingError: there is no place for it.
        """
        fitting = [(ours, theirs) for theirs, ours in self.prefixes if name.startswith(ours)]
        if not fitting:
            raise LoadingError(f"the {self.name} layout has no place for {name}")
        ours, theirs = max(fitting, key=lambda pair: len(pair[0]))  # the first of the longest
        return theirs + name.removeprefix(ours)

    def fit(self, stored: Iterable[str]) -> tuple[int, int]:
        """How many keys of a checkpoint are known here, and how many of them are as they would be written."""
        named = [(key, names[0]) for key in stored if (names := self.names_of(key))]
        return len(named), sum(self.key_of(name) == key for key, name in named)

    def is_unused(self, key: str) -> bool:
        """Whether a key may lie in a checkpoint although no parameter of the model comes from it."""
        return bool(UNUSED.search(key)) or key.startswith(self.idle)


def called(name: str, candidates: Iterable[Keys]) -> str:
    """What the first keys that have a place for a parameter call it; its own name where none has."""
    for keys in candidates:
        if any(name.startswith(ours) for _, ours in keys.prefixes):
            return keys.key_of(name)
    return name


Named = dict[str, Entry]
"""Entries by the parameters' names in our model; their keys are not yet those of the result."""


def shapes_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, without weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def match(tensors: Iterable[Stored], keys: Keys, shapes: Shapes, prefix: str = "") -> Named:
    """Give the tensors of a checkpoint their names. The vocabulary may have any number of rows.

    Args:
        prefix: taken off each key first.

    Raises:
        LoadingError: a key the model does not have, one that comes twice, or one of another shape.
    """
    found: Named = {}
    for item in tensors:
        if keys.is_unused(item.key):
            continue
        names = [name for name in keys.names_of(item.key.removeprefix(prefix)) if name in shapes]
        if not names:
            raise LoadingError(f"{item} is no parameter of this model ({keys.name} layout)")
        name = names[0]
        if name in found:
            raise LoadingError(f"{item} and {found[name].sources[0]} are the same parameter, {name}")
        given, needed = (item.shape, shapes[name]) if name not in VOCABULARY else (item.shape[1:], shapes[name][1:])
        if given != needed:
            raise LoadingError(f"{item} is {item.shape}, the configuration makes it {shapes[name]}")
        found[name] = Entry(name, item.shape, item.dtype, (item,))
    return found


def check_complete(found: Iterable[str], needed: Iterable[str], where: object, candidates: Iterable[Keys]) -> None:
    """Refuse a result that lacks parameters.

    Args:
        candidates: of the sources, to name what is missing as its files would.

    Raises:
        LoadingError: with the first names that are missing and where they should have come from.
    """
    missing = [name for name in needed if name not in set(found)]
    if missing:
        candidates = list(candidates)
        raise LoadingError(f"{where} lacks {name_first(called(name, candidates) for name in missing)}")


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
    total = torch.stack([part.double().sum(0) for part in weight.split(ROWS_AT_ONCE)]).sum(0)
    grown = weight.new_empty(rows, *weight.shape[1:])
    grown[: len(weight)], grown[len(weight) :] = weight, (total / len(weight)).to(weight.dtype)
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


def with_keys(found: Named, keys: Keys) -> list[Entry]:
    """The result's entries under a layout's keys, in the order they lie in their files (so each file is opened once)."""
    entries = [replace(entry, key=keys.key_of(name)) for name, entry in found.items()]
    files: dict[Path, int] = {}
    for entry in entries:
        files.setdefault(entry.sources[0].file, len(files))
    return sorted(entries, key=lambda entry: files[entry.sources[0].file])
