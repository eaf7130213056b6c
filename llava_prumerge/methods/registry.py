"""Finds the methods by walking `methods/vision` and `methods/decoder`, and builds one from its block of settings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from llava_prumerge.methods import decoder, vision
from llava_prumerge.methods.base import _REGISTRY, DecoderPruner, DecoderShape, VisionReducer
from llava_prumerge.ops.errors import ReductionError


def discover() -> dict[str, type[VisionReducer] | type[DecoderPruner]]:
    """Import every file of `methods/vision` and `methods/decoder`, in order of name, and give all methods by name."""
    for folder in (vision, decoder):
        for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda item: item.name):
            importlib.import_module(f"{folder.__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def method_names(kind: type) -> list[str]:
    """Names of all methods of one contract."""
    return [name for name, cls in discover().items() if issubclass(cls, kind)]


def fields_of(cls: type) -> dict[str, inspect.Parameter]:
    """The settings of a method: its constructor's keywords, its parents' included."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base in (VisionReducer.__base__, object):
            break
        if "__init__" in vars(base):
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            named = [item for item in parameters if item.kind is not item.VAR_KEYWORD]
            found |= {item.name: item for item in named if item.name not in found}
            if len(named) == len(parameters):
                break
    found.pop("shape", None)
    return found


def _build(kind: type, block: Mapping[str, Any] | None, *positional: object) -> Any:
    if block is None:
        return None
    settings = dict(block)
    name = settings.pop("name", None)
    known = method_names(kind)
    if name not in known:
        raise ReductionError(f"{kind.__name__} {name!r} is not known; there are: {', '.join(known)}")
    accepted = fields_of(_REGISTRY[name])
    unknown = sorted(set(settings) - set(accepted))
    if unknown:
        takes = ", ".join(sorted(accepted)) or "none"
        raise ReductionError(f"{name} has no setting {', '.join(unknown)}; it takes: {takes}")
    try:
        return _REGISTRY[name](*positional, **settings)
    except TypeError as error:
        raise ReductionError(f"{name}: {error}") from error


def build_reducer(block: Mapping[str, Any] | None) -> VisionReducer | None:
    """A reducer from its block, `{name: prumerge, budget: 40}`; None for None."""
    return _build(VisionReducer, block)


def build_pruner(block: Mapping[str, Any] | None, shape: DecoderShape) -> DecoderPruner | None:
    """A pruner from its block, `{name: fastv, keep: 0.5}`; None for None."""
    return _build(DecoderPruner, block, shape)
