"""What a layout is: how its folders are told, read and written. Each has a file in layouts/, and that is all it needs."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from llava_prumerge.ground.naming import not_known
from llava_prumerge.ground.public import public_name, without_private
from llava_prumerge.model.adapters import METHOD_PREFIXES, Base
from llava_prumerge.model.assembling import DTYPES
from llava_prumerge.model.checkpoints import layouts
from llava_prumerge.model.checkpoints.plan import UNUSED, Keys, Named, with_dtype
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.families import MAIN, stock_type
from llava_prumerge.model.tensor_files import Entry, Stored, list_tensors
from llava_prumerge.model.weight_files import LoadingError, name_first, read_object

PARTS, PROJECTOR, TOWER, WHOLE = KINDS = ("parts", "projector", "tower", "whole")
"""What a source may be; where two layouts claim it, the one that comes first here has it."""
RECORD_FILE = "conversion.json"
MODEL_FILE = "model.safetensors"


@dataclass
class Record:
    """Where a result came from; written beside it as conversion.json, and read by the way back.

    Attributes:
        taken: what the source lacks -> where it was taken from.
        original_config: config.json of the original layout, so that the way back gives it again.
        original_tokenizer: likewise tokenizer_config.json, beside a tokenizer.model.
    """

    source: str
    layout: str
    vision_tower: str | None = None
    taken: dict[str, str] = field(default_factory=dict)
    original_config: dict[str, Any] | None = None
    original_tokenizer: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        """What is written: the folders by their names, as their paths mean nothing elsewhere."""
        values: dict[str, Any] = without_private(dataclasses.asdict(self))
        taken = {what: public_name(where) for what, where in self.taken.items()}
        return values | {"source": public_name(self.source), "taken": taken}

    @classmethod
    def earlier(cls, folder: Path, source: str, layout: str) -> Record:
        """What an earlier conversion wrote about a folder, for the way back; a new one where there was none."""
        file = folder / RECORD_FILE
        if not file.is_file():
            return cls(source, layout)
        try:
            return dataclasses.replace(cls(**read_object(file)), taken={})
        except TypeError as error:
            raise LoadingError(f"{file} is no record of a conversion: {error}") from error


@dataclass
class Whole:
    """A complete model: every parameter by its name in ours, and what goes beside the weights.

    Attributes:
        tokenizer: with the image and padding tokens.
        image_processor: None in a dry run from configurations alone.
        tokenizer_folder: where the tokenizer's files are.
        write_processor: writes what goes with the model beside its weights, where that is no processor of a LLaVA-1.5.
    """

    found: Named
    config: Any
    tokenizer: Any
    image_processor: Any
    tokenizer_folder: Path | None
    record: Record
    write_processor: Callable[[Path], None] | None = None

    @property
    def method(self) -> list[str]:
        """Names of the method's own parameters."""
        return [name for name in self.found if name.startswith(METHOD_PREFIXES)]


@dataclass
class Parts:
    """Trained parts without their base.

    Attributes:
        adapter: LoRA matrices by their names in our model, `...q_proj.lora_A.weight`.
        settings: the adapters' adapter_config.json, empty where there are none.
        projector: by the parameters' names.
        method: likewise, the reducer's and pruner's.
        base: None for a projector whose base was not named.
        whole: configuration, tokenizer and image processor of the model they belong to, with the base's weights where they are needed.
    """

    adapter: dict[str, Stored]
    settings: dict[str, Any]
    projector: Named
    method: Named
    base: Base | None
    whole: Whole | None
    record: Record


@dataclass
class Tower:
    """A vision tower alone: entries, configuration, and settings of its image processor."""

    found: list[Entry]
    config: Any
    pixels: dict[str, Any]
    record: Record


Made = Whole | Parts | Tower


@dataclass(frozen=True)
class Source:
    """What is known of a source from its names: files of a folder with its config.json, or keys of a file."""

    path: Path
    files: frozenset[str]
    config: dict[str, Any] | None
    keys: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Source:
        """Look at a folder or file.

        Raises:
            LoadingError: its config.json, or the file, cannot be read.
        """
        if path.is_file():
            return cls(path, frozenset(), None, tuple(item.key for item in list_tensors(path)))
        files = frozenset(file.name for file in path.iterdir())
        return cls(path, files, read_object(path / "config.json") if "config.json" in files else None, ())


def dtype_of(request: Request) -> torch.dtype | None:
    """The type that was asked for.

    Raises:
        LoadingError: there is none of that name.
    """
    if request.dtype is not None and request.dtype not in DTYPES:
        raise LoadingError(not_known("--dtype", request.dtype, DTYPES))
    return None if request.dtype is None else DTYPES[request.dtype]


def check_switches(file: Path, values: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a config.json whose model is built otherwise than ours.

    Args:
        accepted: for each switch the values that our model is equal to; None among them stands for a switch that is not there.

    Raises:
        LoadingError: with the key and what is accepted.
    """
    for key, known in accepted.items():
        if values.get(key) not in known:
            raise LoadingError(f"{file}: {key} is {values.get(key)!r}; converted are {' and '.join(map(repr, known))}")


class Layout(ABC):
    """One layout.

    Attributes:
        name: as `--to` takes it.
        keys: what its files call parameters, in each generation.
        is_target: whether models can be written in it.
        becomes: what is made of models in a layout that is no target.
        own_options: fields of a request that only whole models in this layout have a use for.
        takes_methods: whether it has a place for a method's parameters.
        families: the types of models that can be written in it, as transformers names them; None: any.
    """

    name: ClassVar[str]
    keys: ClassVar[tuple[Keys, ...]] = ()
    is_target: ClassVar[bool] = True
    becomes: ClassVar[str] = "a CLIP folder"
    own_options: ClassVar[tuple[str, ...]] = ()
    takes_methods: ClassVar[bool] = False
    families: ClassVar[tuple[str, ...] | None] = (MAIN,)

    @abstractmethod
    def kind_of(self, source: Source) -> str | None:
        """What a source is in this layout, one of KINDS; None where it is not of this layout."""

    @abstractmethod
    def read(self, request: Request, kind: str) -> Made:
        """Make the plan of a source.

        Raises:
            LoadingError: something is missing, damaged, mixed or of another model; with file and key.
        """

    @abstractmethod
    def files(self, made: Any, request: Request) -> dict[str, list[Entry]]:
        """The tensors of each weight file of the result; a whole model under MODEL_FILE, in however many shards.

        Raises:
            LoadingError: there is no place for a parameter.
        """

    @abstractmethod
    def write_beside(self, made: Any, request: Request, folder: Path) -> None:
        """Write what goes beside the weights."""

    def placed(self, made: Whole | Parts, request: Request) -> Named:
        """A whole model's entries in the type that was asked for.

        Raises:
            LoadingError: it is of a family, or has parameters of a method, that this layout has no place for.
        """
        whole = made if isinstance(made, Whole) else made.whole
        kind = MAIN if whole is None else stock_type(whole.config.model_type)
        if self.families is not None and kind not in self.families:
            raise LoadingError(
                f"the {self.name} layout holds {' and '.join(self.families)} models, and this is a {kind!r}"
            )
        method = made.method
        if method and not self.takes_methods:
            names = name_first(method)
            raise LoadingError(
                f"the {self.name} layout has no place for the method's {names}; --reduction none leaves them out"
            )
        return with_dtype(made.found, dtype_of(request)) if isinstance(made, Whole) else {}


def known_layouts() -> Mapping[str, Layout]:
    """Every layout by its name: the `LAYOUT` of each module in layouts/."""
    modules = [
        importlib.import_module(f"{layouts.__name__}.{one.name}") for one in pkgutil.iter_modules(layouts.__path__)
    ]
    return {module.LAYOUT.name: module.LAYOUT for module in modules}


def target_layout(name: str) -> Layout:
    """The layout that is to be written.

    Raises:
        LoadingError: there is none of that name.
    """
    known = {name: layout for name, layout in known_layouts().items() if layout.is_target}
    if name not in known:
        raise LoadingError(not_known("--to", name, sorted(known)))
    return known[name]


def recognise_source(path: Path) -> tuple[Layout, str]:
    """The layout of a source, and what it is.

    Raises:
        LoadingError: nothing that can be converted.
    """
    source = Source.of(path)
    claims = [(KINDS.index(kind), layout) for layout in known_layouts().values() if (kind := layout.kind_of(source))]
    if claims:
        rank, layout = min(claims, key=lambda claim: claim[0])
        return layout, KINDS[rank]
    if source.config is None:
        raise LoadingError(f"{path} holds no config.json, no adapters, no projector and no open_clip model")
    kind, known = source.config.get("model_type"), ", ".join(known_layouts())
    raise LoadingError(
        f"{path / 'config.json'} is of a {kind!r}; a LLaVA in one of these layouts can be converted: {known}"
    )


def known_keys(name: str = "") -> list[Keys]:
    """The keys of all layouts, in the order of their files; those that have a place for a parameter."""
    known = [keys for one in known_layouts().values() for keys in one.keys]
    return [keys for keys in known if any(ours.startswith(name) or name.startswith(ours) for _, ours in keys.prefixes)]


def recognise(tensors: Iterable[Stored], candidates: Iterable[Keys] | None = None) -> Keys:
    """Which keys a checkpoint has; any layout's where no candidates are named.

    Raises:
        LoadingError: no candidate's, or keys of two kinds in one checkpoint.
    """
    tensors = [item for item in tensors if not UNUSED.search(item.key)]
    candidates = known_keys() if candidates is None else list(candidates)
    best = max(candidates, key=lambda keys: keys.fit(item.key for item in tensors))
    strangers = [item for item in tensors if not best.names_of(item.key)]
    if strangers:
        others = [keys.name for keys in known_keys() if keys.names_of(strangers[0].key)]
        belongs = f"the {others[0]} layout" if others else "no layout that is known"
        if len(strangers) == len(tensors):
            expected = " or ".join(keys.name for keys in candidates)
            raise LoadingError(f"{strangers[0]} is of {belongs}; expected is {expected}")
        raise LoadingError(f"{strangers[0]} is of {belongs}, the rest is of the {best.name} layout: two are mixed")
    return best
