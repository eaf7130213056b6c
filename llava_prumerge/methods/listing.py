"""The methods as a list: what each does, where it acts, its settings, and the method files that ship for it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llava_prumerge.ground import shipped
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known
from llava_prumerge.ground.yaml_files import read_yaml
from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.methods.registry import SITES, discover, fields_of
from llava_prumerge.methods.settings import SettingInfo


@dataclass(frozen=True)
class MethodInfo:
    """A method.

    Attributes:
        name: as a reduction block names it.
        site: "vision" (acts between tower and decoder) or "decoder" (acts between decoder layers).
        cls: its class.
    """

    name: str
    site: str
    cls: type[VisionReducer] | type[DecoderPruner]

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """What it does, at length: paper, code, departures."""
        module = inspect.getdoc(inspect.getmodule(self.cls)) or ""
        return f"{inspect.getdoc(self.cls) or ''}\n\n{module}".strip()

    @property
    def settings(self) -> dict[str, SettingInfo]:
        """Its settings by name, each with what it accepts, its default and its meaning."""
        return fields_of(self.cls)

    @cached_property
    def files(self) -> list[str]:
        """Names of the method files that ship for it."""
        return [name for name in shipped.names("method") if self.name in _methods_in(name)]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {
            name: {"accepted": one.accepted, "default": one.default, "meaning": one.meaning}
            for name, one in self.settings.items()
        }
        return {"name": self.name, "site": self.site, "summary": self.summary, "settings": told, "files": self.files}


def _methods_in(file: str) -> list[str]:
    content = read_yaml(shipped.require("method", file, "method")) or {}
    return [part["name"] for part in content.values() if isinstance(part, Mapping) and "name" in part]


def list_methods() -> dict[str, MethodInfo]:
    """All methods by name: those of the package, and those of installed plugins."""
    found = {}
    for name, cls in discover().items():
        site = next(site for site, kind in SITES.items() if issubclass(cls, kind))
        found[name] = MethodInfo(name, site, cls)
    return found


def find_method(name: str) -> MethodInfo:
    """A method by its name.

    Raises:
        InputError: there is none; the message says what may have been meant.
    """
    known = list_methods()
    if name not in known:
        raise InputError(not_known("method", name, known))
    return known[name]


def as_text(methods: Mapping[str, MethodInfo]) -> str:
    """A line for each method, by where it acts."""
    width = max(map(len, methods)) + 2
    lines = []
    for site, title in (("vision", "Between the vision tower and the decoder"), ("decoder", "Between decoder layers")):
        lines += [f"{title} ({site}):"]
        lines += [f"  {one.name:<{width}}{one.summary}" for one in methods.values() if one.site == site]
        lines += [""]
    lines += ["Method files that ship: " + ", ".join(shipped.names("method"))]
    return "\n".join(lines)


def describe(method: MethodInfo) -> str:
    """A method with its settings."""
    lines = [
        f"{method.name} ({method.site})",
        "",
        method.description,
        "",
        "Settings:" if method.settings else "No settings.",
    ]
    for one in method.settings.values():
        lines += [
            f"  {one.name}={json.dumps(one.default, default=str)}",
            f"      {one.meaning.rstrip('.')}; {one.accepted}",
        ]
        if one.source:
            lines[-1] += f" (default: {one.source})"
    lines += ["", f"Method files that ship: {', '.join(method.files) or 'none'}"]
    return "\n".join(lines)
