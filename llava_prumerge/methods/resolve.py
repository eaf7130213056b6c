"""One description of a method: whatever names one, and settings on top of it, become the reduction block.

Everything that takes a method (training, evaluation, pictures, demo, conversion, searches, costs) reads it here, so that
the same words mean the same everywhere. A method is described by

    none                            no reduction
    prumerge_plus                   a registered method, or a file of configs/method without its ending
    my/method.yaml                  a method file
    prumerge_plus:budget=64         either of them with settings, as NAME:key=value,key=value
    prumerge_plus+fastv:layer=3     a vision reducer and a decoder pruner
    {name: fastv, layer: 3}         a block, as YAML or as a mapping
    {vision: prumerge, decoder: {name: fastv}}

and settings are `budget=40`, `vision.budget=40`, `decoder.layer=3`, `vision=NAME`, each also behind `reduction.`.
A plain key belongs to the one method that has it; `budget` to the vision reducer where both methods have one. What comes
out is `{"vision": {"name": ...}, "decoder": {"name": ...}}` with the keys that are needed, settings by today's names and
checked. Torch is only loaded when a method is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.ground import shipped
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.naming import not_known, shown
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.ground.yaml_files import parse_yaml, read_yaml
from llava_prumerge.methods.labels import ENDINGS, NONE, SITES, method_name
from llava_prumerge.ops.errors import ReductionError

if TYPE_CHECKING:
    from llava_prumerge.methods.base import DecoderPruner, VisionReducer

Block = dict[str, dict[str, Any]]
Described = str | Path | Mapping[str, Any] | None
PREFIX = "reduction."
_reading: ContextVar[tuple[Path, ...]] = ContextVar("_reading", default=())
"""The method files being read, each named by the one before it."""


def method_files() -> dict[str, Path]:
    """Shipped method files by their names, in order."""
    return {path.stem: path for path in sorted(shipped.folder("method").glob("*.yaml"))}


def resolve(described: Described, settings: Mapping[str, Any] | None = None, own: Described = None) -> Block | None:
    """The reduction block of a description with settings on top.

    Args:
        described: see above; None where nothing was said.
        settings: by key; those that are not None in `settings` act on `own` where nothing was described.
        own: the block a checkpoint carries.

    Returns:
        The block; {} for no reduction; None where neither a description nor a setting was given, which leaves a
        checkpoint its own.

    Raises:
        ReductionError: a file, name, kind, key or value that is not accepted; the message says what is.
    """
    if described is None and not settings:
        return None
    block = _described(own if described is None else described)
    return checked(_with_settings(block, settings or {}))


def resolve_part(described: Described, site: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The one method that is described, where only a vision reducer or only a decoder pruner will do.

    Args:
        described, settings: see `resolve`.
        site: "vision" or "decoder".

    Returns:
        `{"name": ...}` with its settings; for `none` the reducer of that name.

    Raises:
        ReductionError: it is of the other kind, or there are two.
    """
    block = resolve(described, settings) or {}
    if set(block) == {site}:
        return block[site]
    if not block and site == "vision":
        return {"name": NONE}
    from llava_prumerge.methods.registry import KINDS

    kinds = " and ".join(f"{part['name']} is a {KINDS[other]}" for other, part in block.items()) or f"{NONE} is none"
    raise ReductionError(f"one {KINDS[site]} is wanted here; {kinds}")


def checked(block: Mapping[str, Mapping[str, Any]]) -> Block:
    """A block of named methods, every setting by today's name and checked; a part that keeps everything is left out."""
    found: Block = {}
    for site in SITES:
        if part := block.get(site):
            from llava_prumerge.methods.registry import find_at

            settings = {key: value for key, value in part.items() if key != "name"}
            cls = find_at(site, part["name"])
            cls.settings_class.read(settings, cls.name)
            if cls.name != NONE:
                found[site] = {"name": cls.name, **cls.settings_class.renamed(settings, cls.name)}
    return found


def is_setting(key: str, plugin: Iterable[str] | None = None) -> bool:
    """Whether some method has a setting of that name, or the key reaches into a reduction.

    Args:
        key: of a `key=value`.
        plugin: modules of methods to know of.
    """
    if key.removeprefix(PREFIX).partition(".")[0] in (*SITES, "budget"):
        return True
    from llava_prumerge.methods.plugins import load_plugins
    from llava_prumerge.methods.registry import discover

    load_plugins(list(plugin or ()))
    return any(key in cls.settings_class.today() for cls in discover().values())


def stored_reduction(model: str | Path | None) -> dict[str, Any]:
    """The block that a checkpoint's config.json carries; {} for none, and for what is no folder."""
    config = Path(model or "") / "config.json"
    if model is None or not config.is_file():
        return {}
    try:
        found = read_json_object(config).get("reduction") or {}
    except FileError as error:
        raise ReductionError(str(error)) from error
    if not isinstance(found, dict):
        raise ReductionError(f"{config}: reduction must be an object, found {shown(found)}")
    return found


def read_settings(words: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as a mapping, values read as YAML.

    Raises:
        ReductionError: a word without "=", a key given twice, or a value that is no YAML.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise ReductionError(f"{word!r} is not key=value")
        if key.strip() in found:
            raise ReductionError(f"the setting {key.strip()} is given twice")
        found[key.strip()] = read_value(word, text)
    return found


def read_value(told: str, text: str) -> Any:
    """A value written in YAML; `told` is what a message calls it."""
    try:
        return parse_yaml(text, shown(told))
    except FileError as error:
        raise ReductionError(str(error)) from error


def read_method_file(path: Path) -> Block:
    """The checked block of a method file.

    Raises:
        ReductionError: it cannot be read or is no method file; the message names it.
    """
    return checked(_of_file(path))


def _described(described: Described) -> Block:
    """What a description names, not checked yet."""
    if described is None:
        return {}
    if isinstance(described, Mapping):
        return _of_mapping(described, "a method")
    if isinstance(described, Path):
        return _of_file(described)
    if not isinstance(described, str):
        raise ReductionError(f"{described!r} describes no method: give a name, a file, or {{name: NAME, budget: 40}}")
    text = described.strip()
    if text.startswith("{") or "\n" in text:
        return _of_mapping(read_value("method", text), "a method")
    if text.endswith(ENDINGS) or (("/" in text or "\\" in text) and Path(text).is_file()):
        return _of_file(text)
    found: Block = {}
    for words in re.split(r"\+(?=[A-Za-z_])", text):
        for site, part in _of_words(words).items():
            if site in found:
                names = f"{found[site]['name']} and {part['name']}"
                raise ReductionError(f"{described!r} names two methods for {site}, {names}; there is room for one")
            found[site] = part
    return found


def _of_words(words: str) -> Block:
    """NAME, or NAME:key=value,key=value."""
    name, colon, text = words.strip().partition(":")
    block = {} if name == NONE else _of_name(name.strip())
    if not colon:
        return block
    return _with_settings(block, read_settings(re.split(r",(?![^\[({]*[\])}])", text)))


def _of_name(name: str) -> Block:
    """A shipped file without its ending, or a registered method."""
    files = method_files()
    if name in files:
        return _of_file(files[name])
    from llava_prumerge.methods.registry import discover, site_of, unknown_method

    known = discover()
    if name not in known:
        raise unknown_method(name, dict.fromkeys([*known, *files]))
    return {site_of(name): {"name": name}}


def _of_file(word: str | Path) -> Block:
    """A method file, one's own or a shipped one by its path: a block, also under the key `reduction`."""
    path = shipped.find("method", word)
    if path is None:
        raise ReductionError(shipped.not_there("method", word, method_files()))
    before = _reading.get()
    if path in before:
        raise ReductionError("it names itself")
    token = _reading.set((*before, path))
    try:
        content = read_yaml(path)
        if isinstance(content, str):
            raise ReductionError(f"expected the keys vision and decoder, found {content!r}")
        return _of_mapping({} if content is None else content, "a method file")
    except FileError as error:
        raise ReductionError(f"{path} is no method file: {error.reason}") from error
    except ReductionError as error:
        raise ReductionError(f"{path} is no method file: {error}") from error
    finally:
        _reading.reset(token)


def _of_mapping(content: Any, what: str) -> Block:
    """`{name: ...}`, `{vision: ..., decoder: ...}`, or either under `reduction`."""
    if isinstance(content, Mapping) and set(content) == {"reduction"}:
        content = content["reduction"] or {}
    if isinstance(content, str):
        return _described(content)
    if not isinstance(content, Mapping):
        raise ReductionError(f"{what} has the keys vision and decoder, or name; this is {content!r}")
    if "name" in content:
        return _of_named(content)
    if unknown := [key for key in content if key not in SITES]:
        raise ReductionError(f"{what} has the keys vision and decoder, or name: {not_known('key', unknown, SITES)}")
    parts = {site: _part(site, part) for site, part in content.items()}
    return {site: part for site, part in parts.items() if part}


def _part(site: str, part: Any) -> dict[str, Any]:
    """What stands under one key of a block: a mapping with a name, a description, or nothing."""
    if part is None or part == {} or part == NONE:
        return {}
    if isinstance(part, Mapping):
        if "name" not in part:
            raise ReductionError(f"{PREFIX}{site} is {dict(part)!r}; it must name a method, as {{name: NAME}}")
        block = _of_named(part)
    elif isinstance(part, str):
        block = _described(part)
    else:
        raise ReductionError(f"{PREFIX}{site} is {part!r}; it must name a method, as {{name: NAME}}")
    for other in block.keys() - {site}:
        from llava_prumerge.methods.registry import find_at

        find_at(site, block[other]["name"])  # says where it goes
    return block.get(site, {})


def _of_named(part: Mapping[str, Any]) -> Block:
    """`{name: ...}` of a registered method; or of a shipped file, with settings on top."""
    from llava_prumerge.methods.registry import discover, site_of

    name = part["name"]
    if isinstance(name, str) and name not in discover() and name in method_files():
        return _with_settings(_of_name(name), {key: value for key, value in part.items() if key != "name"})
    return {site_of(name): dict(part)}


def _with_settings(block: Block, settings: Mapping[str, Any]) -> Block:
    """A block with settings on top; those that name a method come first."""
    found = {site: dict(part) for site, part in block.items()}
    later: list[tuple[str, str | None, str, Any]] = []
    for given, value in settings.items():
        key = given.removeprefix(PREFIX)
        first, dot, rest = key.partition(".")
        if key in SITES:
            found[key] = _part(key, value)
        elif first in SITES and rest == "name":
            found[first] = _part(first, value)
        elif dot and (first not in SITES or "." in rest or not rest):
            raise ReductionError(f"{given}: a setting is KEY, vision.KEY or decoder.KEY, each also behind {PREFIX}")
        else:
            later.append((given, first if dot else None, rest if dot else key, value))
    found = {site: part for site, part in found.items() if part}
    for given, site, key, value in later:
        site = _owner(found, key, given) if site is None else site
        if site not in found:
            raise ReductionError(f"{given}={value} has no method to belong to; name one: {site}=NAME, or method=NAME")
        found[site] = {old: kept for old, kept in found[site].items() if not _same(found[site], old, key)}
        found[site][key] = value
    return found


def _owner(block: Block, key: str, given: str) -> str:
    """Which method of a block a plain key belongs to."""
    if not block:
        raise ReductionError(f"{given} has no method to belong to; name one: method=NAME")
    if len(block) == 1:
        return next(iter(block))
    takers = [site for site in SITES if key in _method(block[site]).settings_class.today()]
    if not takers:
        known = sorted({name for part in block.values() for name in _method(part).settings_class.infos()})
        raise ReductionError(f"{method_name(block)}: {not_known('setting', key, known)}")
    if len(takers) > 1 and key != "budget":
        names = " and ".join(block[site]["name"] for site in takers)
        raise ReductionError(f"{names} both have {key}; say vision.{key} or decoder.{key}")
    return takers[0]


def _method(part: Mapping[str, Any]) -> type[VisionReducer] | type[DecoderPruner]:
    from llava_prumerge.methods.registry import find

    return find(part["name"])


def _same(part: Mapping[str, Any], one: str, other: str) -> bool:
    """Whether two keys are today's and the former name of one setting."""
    today = _method(part).settings_class.today()
    return today.get(one, one) == today.get(other, other)
