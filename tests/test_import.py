"""`import llava_prumerge` costs nothing and changes nothing; one line makes transformers' Auto classes know our model."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llava_prumerge

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    """Output of a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "torch transformers numpy PIL matplotlib peft deepspeed datasets wandb"
    assert (
        run(f"import sys, llava_prumerge; print([name for name in '{heavy}'.split() if name in sys.modules])") == "[]"
    )


def test_methods_load_without_transformers() -> None:
    code = "import sys, llava_prumerge.methods.registry as registry; registry.discover(); print('transformers' in sys.modules)"
    assert run(code) == "False"


def test_the_auto_classes_know_the_model_after_one_line() -> None:
    """Whichever is imported first; not before that line."""
    code = (
        "from transformers import AutoConfig, AutoModelForImageTextToText as Auto\n"
        "import llava_prumerge\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING as known\n"
        "print('llava_prumerge' in known)\n"
        "llava_prumerge.register(); llava_prumerge.register()\n"
        "print(Auto._model_mapping[type(AutoConfig.for_model('llava_prumerge'))].__name__)\n"
    )
    assert run(code).split() == ["False", "PruMergeLlavaForConditionalGeneration"]


def test_importing_the_package_reaches_into_nothing() -> None:
    """Nothing but its own few modules comes with it, and no other import goes through it."""
    code = (
        "import sys, importlib; before, meta, hooks = set(sys.modules), list(sys.meta_path), list(sys.path_hooks)\n"
        "import llava_prumerge\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(*new, sys.meta_path == meta and sys.path_hooks == hooks, len(llava_prumerge.__all__) > 8)"
    )
    assert run(code).split() == ["llava_prumerge", "True", "True"]


def test_public_names_are_found_listed_and_typed() -> None:
    assert set(llava_prumerge.__all__) <= set(dir(llava_prumerge)) and "__version__" in dir(llava_prumerge)
    for name in llava_prumerge.__all__:
        value = getattr(llava_prumerge, name)
        assert value.__name__ == name and value.__doc__, name
        assert value.__module__.startswith("llava_prumerge")
    from llava_prumerge import ask, load_model

    assert load_model is llava_prumerge.load_model and callable(ask)
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        _ = llava_prumerge.load_modle
    tree = ast.parse((ROOT / "llava_prumerge" / "__init__.pyi").read_text("utf-8"))
    stub = {alias.asname: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    stub |= {node.name: "llava_prumerge" for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert stub == {name: getattr(llava_prumerge, name).__module__ for name in llava_prumerge.__all__}


def test_help_tells_the_public_names_with_an_example() -> None:
    import pydoc

    text = pydoc.plain(pydoc.render_doc(llava_prumerge))
    for name in llava_prumerge.__all__:
        assert f"\n    {name}" in text or f"class {name}" in text, name
    assert 'llava_prumerge.ask(model, processor, "What is on the table?", "photo.jpg")' in text
