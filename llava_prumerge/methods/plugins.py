"""Methods from outside the package: modules that are named in a command, and those that installed packages announce.

A package announces its methods in its pyproject.toml, and needs nothing else:

    [project.entry-points."llava_prumerge.methods"]
    mine = "my_package.my_methods"

Anything else is named: `--plugin my_methods.py`, `--plugin my_package.my_methods`, or `plugin=` among `key=value`
settings. A plugin is Python that runs with your rights; a checkpoint never brings one. Imports no torch by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from llava_prumerge.ops.errors import ReductionError

logger = logging.getLogger(__name__)

GROUP = "llava_prumerge.methods"


def load_plugin(name: str) -> None:
    """Import a module, or run a Python file, that registers methods. A file that changed is run again.

    Args:
        name: a module's name, or a path that ends in .py.

    Raises:
        ReductionError: there is none, or it fails; the message names it and says why.
    """
    path = Path(name).expanduser()
    try:
        if path.suffix == ".py":
            _run(path.resolve())
        else:
            importlib.import_module(name)
    except FileNotFoundError as error:
        raise ReductionError(f"plugin {name}: no such file") from error
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            known = "give a module that can be imported, or a path that ends in .py"
            raise ReductionError(f"plugin {name}: there is no module {error.name}; {known}") from error
        raise ReductionError(f"plugin {name}: {error}") from error
    except Exception as error:  # whatever a stranger's module does
        raise ReductionError(f"plugin {name}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def load_plugins(names: str | Sequence[str] | None) -> None:
    """Several, also with commas between."""
    words = names.split(",") if isinstance(names, str) else names or ()
    for name in words:
        load_plugin(str(name).strip())


def _run(path: Path) -> None:
    """Run a file as a module of its own; the same text is not run twice."""
    text = path.read_bytes()
    name = f"llava_prumerge_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    before = sys.modules.get(name)
    if before is not None and getattr(before, "_text", None) == text:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name)
        raise
    module._text = text


@cache
def load_announced() -> None:
    """Import what installed packages announce, once. One that fails is named and left out."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken package must not take the others' methods away
            logger.warning(
                "methods of %s (%s) are left out: %s: %s", entry.name, entry.value, type(error).__name__, error
            )


class LoadPlugin(argparse.Action):
    """Loads the plugin when the option is read, so that options after it may name its methods."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        try:
            load_plugins(values)
        except ReductionError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """`--plugin MODULE_OR_FILE`, which may be given several times."""
    parser.add_argument(
        "--plugin",
        nargs=1,
        action=LoadPlugin,
        metavar="MODULE|FILE.py",
        help="Python that registers methods of your own; repeatable",
    )


def plugin_settings(given: argparse.Namespace) -> list[str]:
    """What `--plugin` gave as the setting `plugin=`, for commands that keep it among theirs; [] where nothing was."""
    return [f"plugin={','.join(given.plugin)}"] if given.plugin else []
