"""Reading YAML: plain values alone, no key twice, bounded in depth and in what aliases multiply, errors in one line."""

from __future__ import annotations

from functools import cache
from typing import Any

from llava_prumerge.ground.errors import AnyPath, FileError
from llava_prumerge.ground.reading import read_text

MOST_VALUES = 100_000
"""Values that a document may hold once its aliases are written out."""
LONGEST = 1 << 20
"""Bytes of a file."""


def read_yaml(path: AnyPath) -> Any:
    """The value in a YAML file; None for an empty one.

    Raises:
        FileError: it cannot be read, or as `parse_yaml`.
    """
    return parse_yaml(read_text(path, LONGEST), path)


def parse_yaml(text: str, path: AnyPath) -> Any:
    """The value in a YAML text; None for an empty one.

    Args:
        text: the text.
        path: where it comes from, for the message alone: a file, or what a person typed.

    Raises:
        FileError: it is not YAML, holds a key twice, is nested too deeply, or holds more than `MOST_VALUES` values: with
            line and column.
    """
    import yaml

    loader = None
    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, path)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise FileError(path, f"{place}not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise FileError(path, f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise FileError(path, "its YAML is nested too deeply") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # From PyYAML's own constructors: a date that does not exist, `!!int x`, a number of 10,000 digits.
        raise FileError(path, f"not valid YAML: a value is not what it should be ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


@cache
def _loader() -> Any:
    """PyYAML's safe loader, which takes the last of two equal keys, made to refuse them."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                if (key.tag, key.value) in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value[:80]!r} stands here a second time", key.start_mark
                    )
                keys.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    return Loader


def _check_size(root: Any, path: AnyPath) -> None:
    """Count values as often as aliases repeat them, without repeating them."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0  # met again before it is known: it holds itself
            value = node.value if isinstance(node.value, list) else []
            children = [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(map(size, children))
        elif not sizes[id(node)]:
            raise FileError(path, f"line {node.start_mark.line + 1}: a value holds itself, by an alias")
        return sizes[id(node)]

    if size(root) > MOST_VALUES:
        raise FileError(path, f"it holds more than {MOST_VALUES:,} values")
