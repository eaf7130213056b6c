"""The registry: methods by name, those of `methods/vision` and `methods/decoder` and those of other packages.

A method enters by `@register("name")`. `discover` imports every file of the two folders, and whatever installed packages
name under the entry-point group `llava_prumerge.methods`.
"""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

from llava_prumerge.ground.naming import not_known
from llava_prumerge.methods import decoder, vision
from llava_prumerge.methods.base import DecoderPruner, DecoderShape, VisionReducer
from llava_prumerge.methods.cost import Benchmark
from llava_prumerge.methods.plugins import load_announced
from llava_prumerge.methods.search_target import SearchKind, SearchTarget
from llava_prumerge.methods.settings import SettingInfo, Settings
from llava_prumerge.ops.errors import ReductionError

_REGISTRY: dict[str, type[VisionReducer] | type[DecoderPruner]] = {}
Registered = TypeVar("Registered", bound="type[VisionReducer] | type[DecoderPruner]")
SITES: dict[str, type[VisionReducer] | type[DecoderPruner]] = {"vision": VisionReducer, "decoder": DecoderPruner}
"""The keys of a reduction block, and the contract of the method under each."""
KINDS = {"vision": "vision reducer", "decoder": "decoder pruner"}


def register(name: str) -> Callable[[Registered], Registered]:
    """Enter a method under a name. The annotation of its `settings` says which dataclass they are.

    The same class of the same module may come again, as it does when a notebook's cell is run twice: the newer one
    takes its place.

    Raises:
        ReductionError: another method has that name, or the class is no method.
    """

    def enter(cls: Registered) -> Registered:
        if not (isinstance(cls, type) and issubclass(cls, VisionReducer | DecoderPruner)):
            raise ReductionError(f"{name}: {cls!r} is neither a VisionReducer nor a DecoderPruner")
        other = _REGISTRY.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ReductionError(
                f"two methods are called {name!r}: {other.__qualname__} of {other.__module__} and {cls.__qualname__} "
                f"of {cls.__module__}"
            )
        cls.name, cls.settings_class = name, _declared_settings(cls)
        cls.settings_class.infos()  # a class that is no dataclass is refused here
        _REGISTRY[name] = cls
        return cls

    return enter


def _declared_settings(cls: type) -> type[Settings]:
    """The settings dataclass that a class or its nearest parent declares."""
    declared = typing.get_type_hints(cls)["settings"]
    if not (isinstance(declared, type) and issubclass(declared, Settings)):
        raise ReductionError(f"{cls.__name__}: settings must be annotated with a dataclass derived from Settings")
    return declared


def discover() -> dict[str, type[VisionReducer] | type[DecoderPruner]]:
    """All methods by name: those of `methods/vision` and `methods/decoder`, and those of plugins."""
    for folder in (vision, decoder):
        for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda item: item.name):
            importlib.import_module(f"{folder.__name__}.{module.name}")
    load_announced()
    return dict(sorted(_REGISTRY.items()))


def method_names(kind: type) -> list[str]:
    """Names of all methods of one contract."""
    return [name for name, cls in discover().items() if issubclass(cls, kind)]


def measured_methods(benchmark: Benchmark) -> list[str]:
    """Names of the vision reducers that a measurement of the project takes where none is named."""
    return [name for name, cls in discover().items() if benchmark in getattr(cls, "benchmarks", ())]


def search_targets(kind: SearchKind) -> dict[str, SearchTarget]:
    """Methods for which a search of that kind can find settings, with what they say of it."""
    return {
        name: target
        for name, cls in discover().items()
        for target in getattr(cls, "search_targets", ())
        if target.kind == kind
    }


def fields_of(cls: type[VisionReducer] | type[DecoderPruner]) -> dict[str, SettingInfo]:
    """The settings of a method by name."""
    return cls.settings_class.infos()


def site_of(name: object) -> str:
    """Which key of a reduction block a method stands under.

    Raises:
        ReductionError: there is no such method.
    """
    cls = find(name)
    return next(site for site, kind in SITES.items() if issubclass(cls, kind))


def find(name: object) -> type[VisionReducer] | type[DecoderPruner]:
    """A method by its name.

    Raises:
        ReductionError: there is none; the message names the most alike, and all.
    """
    known = discover()
    if not isinstance(name, str):
        raise ReductionError(f"{name!r} is no method; a block must name one, as {{name: NAME}}")
    if name not in known:
        raise unknown_method(name, known)
    return known[name]


def unknown_method(name: object, known: Iterable[str]) -> ReductionError:
    """The error for a name that is none of the known."""
    return ReductionError(
        f"{not_known('method', name, known)} (one from outside the package needs its module or file named: "
        "--plugin NAME, or plugin=NAME)"
    )


def find_at(site: str, name: object) -> type[VisionReducer] | type[DecoderPruner]:
    """A method that is to stand under a key of a reduction block.

    Raises:
        ReductionError: there is none of that name, or it is of the other contract.
    """
    cls = find(name)
    if not issubclass(cls, SITES[site]):
        own = site_of(cls.name)
        raise ReductionError(f"{cls.name} is a {KINDS[own]}; it goes under {own}, not under {site}")
    return cls


def _build(site: str, block: Mapping[str, Any] | None, *positional: object) -> Any:
    if block is None:
        return None
    settings = dict(block)
    cls: Any = find_at(site, settings.pop("name", None))
    return cls(cls.settings_class.read(settings, cls.name), *positional)


@overload
def build_reducer(block: Mapping[str, Any]) -> VisionReducer: ...
@overload
def build_reducer(block: None) -> None: ...
@overload
def build_reducer(block: Mapping[str, Any] | None) -> VisionReducer | None: ...
def build_reducer(block: Mapping[str, Any] | None) -> VisionReducer | None:
    """A reducer from its block, `{name: NAME, budget: 40}`; None for None."""
    return _build("vision", block)


@overload
def build_pruner(block: None, shape: DecoderShape) -> None: ...
@overload
def build_pruner(block: Mapping[str, Any], shape: DecoderShape) -> DecoderPruner: ...
def build_pruner(block: Mapping[str, Any] | None, shape: DecoderShape) -> DecoderPruner | None:
    """A pruner from its block, `{name: NAME, budget: 171}`; None for None."""
    return _build("decoder", block, shape)
