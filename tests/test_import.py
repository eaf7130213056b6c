"""`import llava_prumerge` costs nothing and changes nothing; one line makes transformers' Auto classes know our model."""

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
