"""Who may import whom. The table is the rule; `docs/architecture.md` draws it.

Imports are read from the source, those inside functions too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Container, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = {"ops", "methods.words", "methods.base"}
WORDS = ("methods.settings", "methods.cost", "methods.labels", "methods.plugins", "methods.search_target")
LOWEST = CONTRACTS | {"methods.resolve"}
LIBRARIES = {"text", "model", "data", "efficiency", "profiling"}
FLOORS: dict[str, set[str]] = {  # floor: floors it may import besides itself
    "root": set(),
    "ground": set(),  # files, JSON lines, revisions, ranks: everybody's, so it is named in no other line
    "ops": set(),
    "text": set(),  # tokenizers and templates
    "methods.words": {"ops"},  # what a method says of itself, without torch
    "methods.base": {"ops", "methods.words"},
    "methods.resolve": CONTRACTS,  # reads method files
    "methods": CONTRACTS,  # and never another method, see below
    "model": LOWEST | {"text"},
    "data": LOWEST | {"text"},
    "efficiency": LOWEST | {"model"},  # shapes of other families than LLaVA-1.5, from their modules
    "inference": LOWEST | LIBRARIES,
    "train": LOWEST | LIBRARIES,
    "profiling": LOWEST | {"efficiency"},
    "evaluation": LOWEST | LIBRARIES,
    "viz": LOWEST | LIBRARIES | {"inference"},
    "search": LOWEST | LIBRARIES,
    "harness": LOWEST | LIBRARIES | {"inference", "evaluation"},  # loads a model as an evaluation does
    "serving": LOWEST | LIBRARIES | {"inference", "harness", "viz"},  # viz for who may ask, as its page does
    "hub": LOWEST | LIBRARIES | {"evaluation"},  # reads result files with its library
}
TORCH_ALONE = {"ground", "ops", "methods.words", "methods.base", "methods"}
EVERYWHERE = {"llava_prumerge"}  # the package itself: its version, and the shims that importing it installs


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "llava_prumerge").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def floor(module: str) -> str:
    """The floor a module stands on."""
    inside = module.removeprefix("llava_prumerge").removeprefix(".")
    if inside in ("", "__main__"):
        return "root"
    if inside.startswith(("methods.vision.", "methods.decoder.")):
        return "methods"
    if inside == "methods.resolve":
        return inside
    if inside in WORDS:
        return "methods.words"
    return "methods.base" if inside.split(".")[0] == "methods" else inside.split(".")[0]


def imports(module: str, nested: bool = True) -> list[tuple[str, str]]:
    """(module, name) for each imported thing; the name is empty for `import x`. Submodules imported by name count as modules."""
    path = SOURCES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return imports_in(path.read_text(encoding="utf-8"), package, SOURCES, nested)


def imports_in(source: str, package: list[str], known: Container[str], nested: bool = True) -> list[tuple[str, str]]:
    """The same for a source text in a package; `nested` counts what is imported in functions and for types alone."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree) if nested else iter(tree.body):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append((whole, "") if whole in known else (base, alias.name))
    return found


def find_circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one named again at the end; empty where there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def ours(name: str) -> bool:
    return name.split(".")[0] == "llava_prumerge"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downwards(module: str) -> None:
    here = floor(module)
    assert here in FLOORS, f"{module} is on no floor of the table"
    for imported, _ in imports(module):
        if not ours(imported) or imported in EVERYWHERE:
            continue
        there = floor(imported)
        if here == "root":
            assert there in ("root", "ground"), f"{module} imports {imported}: importing the package must stay cheap"
        elif there not in (here, "ground"):
            assert there in FLOORS[here], f"{module} imports {imported}: {here} may import {sorted(FLOORS[here])}"
        elif here == there == "methods":
            raise AssertionError(f"{module} imports {imported}: one method does not know another")


@pytest.mark.parametrize("module", [name for name in SOURCES if floor(name) in TORCH_ALONE])
def test_low_floors_need_torch_alone(module: str) -> None:
    for imported, _ in imports(module):
        top = imported.split(".")[0]
        alone = top == "torch" or (top == "yaml" and floor(module) == "ground")  # read where YAML is, by one reader
        assert ours(imported) or alone or top in sys.stdlib_module_names, f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in SOURCES if floor(name) == "ground"])
def test_the_ground_needs_the_standard_library_alone(module: str) -> None:
    """Torch may be asked for inside a function, by what has to ask it."""
    for imported, _ in imports(module, nested=False):
        assert ours(imported) or imported.split(".")[0] in sys.stdlib_module_names, f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in SOURCES if floor(name) == "efficiency"])
def test_arithmetic_needs_no_torch(module: str) -> None:
    """Methods are asked what they leave, and they import it; nothing else here does."""
    for imported, _ in imports(module):
        assert imported.split(".")[0] not in ("torch", "transformers", "numpy"), f"{module} imports {imported}"
    for imported, _ in imports(module, nested=False):
        assert floor(imported) in ("efficiency", "ground", "ops", "methods.words", "methods.resolve") or not ours(
            imported
        ), f"{module} imports {imported}"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_are_explicit_and_public(module: str) -> None:
    for imported, name in imports(module):
        assert name != "*", f"{module} imports everything from {imported}"
        if imported.split(".")[0] == "transformers":
            private = [part for part in [*imported.split("."), name] if part.startswith("_")]
            assert not private, f"{module} imports {private} of {imported}"


def test_no_two_modules_import_each_other() -> None:
    """Imports inside functions and for types alone count: they say as much about who depends on whom."""
    graph = {module: {name for name, _ in imports(module)} & SOURCES.keys() - EVERYWHERE for module in SOURCES}
    assert sum(map(len, graph.values())) > 500
    assert not (circle := find_circle(graph)), f"a circle of imports: {' -> '.join(circle)}"


@pytest.mark.parametrize(
    "back",
    [
        "from p.a import f",
        "from . import a",
        "import p.a",
        "def g():\n    from p.a import f",
        "class C:\n    def g(self):\n        from . import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import f",
        "try:\n    import p.a\nexcept ImportError:\n    pass",
    ],
)
def test_every_kind_of_import_closes_a_circle(back: str) -> None:
    """The test above would see it."""
    texts = {"p.a": "from p import b", "p.b": "import p.c\nimport json", "p.c": back}
    graph = {name: {one for one, _ in imports_in(text, ["p"], texts)} & texts.keys() for name, text in texts.items()}
    assert set(find_circle(graph)) == {"p.a", "p.b", "p.c"}
    assert not find_circle(graph | {"p.c": set()})


def test_the_table_is_about_this_tree() -> None:
    """Each floor exists, so that a renamed folder cannot slip out of the rules."""
    assert set(FLOORS) == {floor(module) for module in SOURCES}
