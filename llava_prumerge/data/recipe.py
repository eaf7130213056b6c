"""Recipe files: YAML merged left to right, then `key=value`, into one flat mapping.

Rules, in the order they apply:

1. A file may name `include: other.yaml` (relative to itself): that file is read first, the rest goes on top.
2. Files merge left to right; a later value replaces an earlier one. Nothing is merged more deeply than that: a
   method's `reduction` block replaces another method's completely instead of inheriting its settings.
3. A method file holds only the `reduction` block's keys (`vision`, `decoder`).
4. `key=value` comes last. The value is YAML.
5. `method=NAME` is another way to say `reduction`, and what reaches into it (`budget=64`, `reduction.vision.budget=64`,
   `decoder.layer=3`) is set aside under `SETTINGS`, in order: `methods.resolve` puts the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_prumerge.ground import shipped
from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.yaml_files import parse_yaml, read_yaml

REDUCTION_KEYS = frozenset({"vision", "decoder"})
SETTINGS = "settings of the method"
"""Where a merged recipe keeps what is to be set in its reduction; no key of a file."""


class RecipeError(InputError):
    """A recipe that cannot be run as written; the message is one line meant for the person who wrote it."""


def read_recipe(tokens: list[str]) -> dict[str, Any]:
    """Merge recipe files and overrides given in command-line order.

    Args:
        tokens: YAML files, or names of recipes and methods that ship, and `key=value` items; overrides apply after all files wherever they stand.
    """
    overrides = [token for token in tokens if "=" in token]
    merged: dict[str, Any] = {}
    for token in tokens:
        if "=" not in token:
            merged.update(read_file(find_file(token)))
    for override in overrides:
        apply_override(merged, override)
    return merged


def find_file(word: str) -> Path:
    """The file that a word of the command line means: one's own, or a recipe or method that ships.

    Raises:
        RecipeError: there is none; the message names those that ship.
    """
    found = shipped.find("train", word) or shipped.find("method", word)
    if found is None:
        recipes, methods = shipped.names("train"), shipped.names("method")
        if Path(word).parent.name == "method":
            raise RecipeError(shipped.not_there("method", word, methods))
        raise RecipeError(shipped.not_there("recipe or method", word, [*recipes, *methods]))
    return found


def read_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read one YAML file with its includes resolved, as a flat mapping of recipe keys."""
    if not path.is_file():
        raise RecipeError(f"{path}: no such file, which another recipe includes")
    if path.resolve() in seen:
        raise RecipeError(f"{path} includes itself by way of {' -> '.join(str(parent) for parent in seen)}")
    try:
        content = read_yaml(path)
    except FileError as error:
        raise RecipeError(str(error)) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(f"{path} must hold a mapping of names to values, got {type(content).__name__}")
    if content and set(content) <= REDUCTION_KEYS:
        return {"reduction": content}
    merged: dict[str, Any] = {}
    if "include" in content:
        include = content.pop("include")
        if not isinstance(include, str):
            raise RecipeError(f"{path}: include must name one file, got {include!r}")
        merged.update(read_file(path.parent / include, (*seen, path.resolve())))
    merged.update(content)
    if "method" in content:
        if "reduction" in content:
            raise RecipeError(f"{path}: method and reduction are the same; give one of them")
        merged["reduction"] = merged.pop("method")
    return merged


def read_names(key: str, value: Any) -> list[str]:
    """The list of a key that holds names: a YAML list, or text with commas between; null, "" and "none" are none."""
    items = value.split(",") if isinstance(value, str) else value
    items = [] if items in (["none"], [""], None) else items
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise RecipeError(f"{key}={shown(value)}: must be a list of names")
    return [item.strip() for item in items]


def apply_override(merged: dict[str, Any], override: str) -> None:
    """Apply one `key=value` in place; a dotted key reaches into a mapping."""
    key, _, text = override.partition("=")
    names = key.strip().split(".")
    if not all(names):
        raise RecipeError(f"{override!r}: the key before '=' must be a name or names joined by dots")
    try:
        value = parse_yaml(text, shown(override))
    except FileError as error:
        raise RecipeError(str(error)) from error
    if names[0] in (*REDUCTION_KEYS, "budget") or (names[0] == "reduction" and len(names) > 1):
        merged[SETTINGS] = {**merged.get(SETTINGS, {}), key.strip(): value}
        return
    if names == ["method"]:
        names = ["reduction"]
    target = merged
    for depth, name in enumerate(names[:-1], start=1):
        if target.get(name) is None:
            target[name] = {}
        elif not isinstance(target[name], dict):
            raise RecipeError(f"{override!r}: {'.'.join(names[:depth])} is {target[name]!r}, which has no keys")
        else:
            target[name] = dict(target[name])
        target = target[name]
    target[names[-1]] = value
