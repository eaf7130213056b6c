"""`import llava_prumerge` is cheap, and what it installs acts once the heavy libraries come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_installing_again_changes_nothing() -> None:
    code = (
        "import sys, llava_prumerge.lazy_imports as lazy\n"
        "before = list(sys.meta_path); lazy.install(); print(before == list(sys.meta_path))"
    )
    assert run(code) == "True"


def test_torchvision_imports_beside_this_torch() -> None:
    """Skipped in effect where torchvision is not there: the code then prints its absence."""
    code = (
        "import importlib.util, llava_prumerge\n"
        "there = importlib.util.find_spec('torchvision') is not None\n"
        "if there:\n    import torchvision.transforms\n"
        "print('fine')"
    )
    assert run(code) == "fine"
