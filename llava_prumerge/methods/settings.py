"""Settings of methods: frozen dataclasses whose fields tell what they mean, what they accept and where they come from.

A method's settings stand beside it:

    @dataclass(frozen=True, kw_only=True)
    class GridSettings(Settings):
        rows: int = setting(5, "rows of cells", at_least(1), source="PruMerge, Table 4")

Values come from YAML or from `key=value`, so that types are exact: `true` is no number, 2.0 is no whole number, and
`1/9` is the fraction it is written as. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from functools import cache
from typing import Any, Literal, Self

from llava_prumerge.ground.naming import not_known, shown
from llava_prumerge.ops.errors import ReductionError

logger = logging.getLogger(__name__)

LARGEST = 2**31 - 1
"""Whole numbers beyond it are no setting's: tensors are counted in 32 bits in places."""
_LONGEST_NUMBER = 40

TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Fraction: "a number or a fraction such as 1/8",
    str: "text",
}
"""What a field of a type accepts, in words."""


@dataclass(frozen=True)
class Rule:
    """What a field accepts beside being of its type.

    Attributes:
        accepted: in words, "a positive whole number"; "{number}" stands for "a whole number" in a field of whole
            numbers, and for "a number" in any other.
        holds: whether a value of the field's type is accepted.
    """

    accepted: str
    holds: Callable[[Any], bool]


def at_least(least: float, accepted: str | None = None) -> Rule:
    """A number that is not smaller: a whole one or any, as the field's type is."""
    return Rule(accepted or f"{{number}} of at least {least:g}", lambda value: value >= least)


def above(bound: float, accepted: str | None = None) -> Rule:
    """A number that is larger: a whole one or any, as the field's type is."""
    return Rule(accepted or f"{{number}} above {bound:g}", lambda value: value > bound)


def between(low: float, high: float, accepted: str | None = None) -> Rule:
    """A number above `low` and below `high`."""
    return Rule(accepted or f"{{number}} between {low:g} and {high:g}", lambda value: low < value < high)


def fraction(zero: bool = False, accepted: str | None = None) -> Rule:
    """A number up to 1 and above 0, or not below it."""
    interval = "[0, 1]" if zero else "(0, 1]"
    return Rule(
        accepted or f"a number in {interval} or a fraction such as 1/8",
        lambda value: (value >= 0 if zero else value > 0) and value <= 1,
    )


def setting(default: Any, meaning: str, rule: Rule | None = None, *, source: str = "", formerly: str = "") -> Any:
    """A field of a settings dataclass.

    Args:
        default: where nothing is said.
        meaning: what it decides, in one or two sentences.
        rule: what it accepts, where its type does not say all.
        source: where the default comes from: "paper", "released code", "ours".
        formerly: a name that files and checkpoints may still use.
    """
    metadata = {"meaning": meaning, "rule": rule, "source": source, "formerly": formerly}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SettingInfo:
    """One setting of a method, for people and for whoever reads settings.

    Attributes:
        name: its key.
        accepted: type and bounds in words.
        default: as it is written in a file.
        meaning, source, formerly: see `setting`.
    """

    name: str
    accepted: str
    default: Any
    meaning: str
    source: str = ""
    formerly: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a method; this one has none."""

    def __post_init__(self) -> None:
        for item, hint in _typed_fields(type(self)):  # type: ignore[arg-type]  # frozen ones have a hash
            object.__setattr__(self, item.name, _read(item, hint, getattr(self, item.name)))
        self.check()

    def check(self) -> None:
        """Refuse values that do not go together, by `ReductionError`. What concerns one field is its `Rule`'s."""

    @classmethod
    def infos(cls) -> dict[str, SettingInfo]:
        """All settings by name, in order of name."""
        found = {}
        for item, hint in _typed_fields(cls):  # type: ignore[arg-type]
            told = {key: item.metadata.get(key, "") for key in ("meaning", "source", "formerly")}
            found[item.name] = SettingInfo(item.name, _accepted(item, hint), item.default, **told)
        return dict(sorted(found.items()))

    @classmethod
    def today(cls) -> dict[str, str]:
        """Every key that is taken, former ones included -> the setting's name."""
        infos = cls.infos()
        return {name: name for name in infos} | {info.formerly: info.name for info in infos.values() if info.formerly}

    @classmethod
    def read(cls, values: Mapping[str, Any], method: str) -> Self:
        """Typed settings from a file's or a command's values.

        Args:
            values: by key; former names are taken and said once.
            method: for messages.

        Raises:
            ReductionError: an unknown key, or a value that is not accepted; the message names the method, the key and
                what is accepted.
        """
        renamed = cls.renamed(values, method)
        unknown = [key for key in renamed if key not in cls.infos()]
        if unknown:
            raise ReductionError(f"{method}: {not_known('setting', unknown[0], cls.infos())}")
        try:
            return cls(**renamed)
        except ReductionError as error:
            raise ReductionError(f"{method}: {error}") from error

    @classmethod
    def renamed(cls, values: Mapping[str, Any], method: str) -> dict[str, Any]:
        """Values by today's keys.

        Raises:
            ReductionError: a setting is given by both its names.
        """
        today = cls.today()
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = today.get(key, key)
            if name in found:
                raise ReductionError(f"{method}: {key} and {name} are the same setting; give one of them")
            if name != key:
                _say_once(f"{method}: the setting {key} is now called {name}")
            found[name] = value
        return found

    def told(self) -> dict[str, str]:
        """Every setting's value as text, for `repr`."""
        return {item.name: _shown(getattr(self, item.name)) for item in fields(self)}


@cache
def _typed_fields(cls: type[Settings]) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """A settings class's fields with their types."""
    bare = [key for base in cls.__mro__ for key, value in vars(base).items() if isinstance(value, dataclasses.Field)]
    if bare:
        raise ReductionError(f"{cls.__name__} needs @dataclass(frozen=True, kw_only=True) for its {', '.join(bare)}")
    hints = typing.get_type_hints(cls)
    return tuple((item, hints[item.name]) for item in fields(cls))


@cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Fraction) else repr(list(value) if isinstance(value, tuple) else value)


def _accepted(item: dataclasses.Field[Any], hint: Any) -> str:
    """What a field accepts, in words."""
    kinds = [kind for kind in _kinds(hint) if kind is not types.NoneType]
    rule: Rule | None = item.metadata.get("rule")
    if rule is not None:
        told = rule.accepted.replace("{number}", TYPES[int if kinds == [int] else float])
        return told.replace("a whole number of at least 1", "a positive whole number")
    if typing.get_origin(kinds[0]) is Literal:
        return f"one of {', '.join(typing.get_args(kinds[0]))}"
    if typing.get_origin(kinds[0]) is tuple:
        return f"a list of {'whole ' if typing.get_args(kinds[0])[0] is int else ''}numbers"
    return " or ".join(TYPES[kind] for kind in kinds)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    united = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the latter where a Literal is part of it
    return typing.get_args(hint) if united else (hint,)


def _read(item: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A value in the field's type.

    Raises:
        ReductionError: it is of another type, or its rule does not hold.
    """
    kinds = _kinds(hint)
    if value is None and types.NoneType in kinds:
        return None
    read: Any = MISSING
    for kind in kinds:
        read = _as_type(kind, value, numbers_only=str in kinds)
        if read is not MISSING:
            break
    rule: Rule | None = item.metadata.get("rule")
    if read is MISSING or (rule is not None and not rule.holds(read)):
        raise ReductionError(f"{item.name} {shown(value)} is not {_accepted(item, hint)}")
    return read


def _as_type(kind: Any, value: Any, numbers_only: bool = False) -> Any:
    """A value as one type; MISSING where it is none.

    Args:
        kind: the type.
        value: of YAML.
        numbers_only: text is not read as a number, because the field takes text too.
    """
    if typing.get_origin(kind) is Literal:
        if isinstance(value, int | float) and not isinstance(value, bool):  # YAML's 2.0 is no text
            value = str(value)
        return value if isinstance(value, str) and value in typing.get_args(kind) else MISSING
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return MISSING
        items = tuple(_as_type(typing.get_args(kind)[0], one) for one in value)
        return MISSING if MISSING in items else items
    if isinstance(value, bool):
        return value if kind is bool else MISSING
    if kind in (float, Fraction) and (
        isinstance(value, int | float | Fraction) or (isinstance(value, str) and not numbers_only)
    ):
        return _number(kind, value)
    if kind is int and isinstance(value, int) and abs(value) > LARGEST:
        return MISSING
    return value if kind in (int, str) and isinstance(value, kind) else MISSING


def _number(kind: Any, value: int | float | Fraction | str) -> Any:
    """A float or an exact fraction; "1/9" is the fraction it is written as."""
    try:
        if kind is float and not (isinstance(value, str) and "/" in value):
            number = float(value)
        else:
            if isinstance(value, str) and len(value) > _LONGEST_NUMBER:
                return MISSING
            number = kind(Fraction(str(value)))
        return number if math.isfinite(number) else MISSING
    except (ValueError, OverflowError, ZeroDivisionError):
        return MISSING
