"""The oldest release of transformers that pyproject.toml admits: the model's own tests pass with it (make test-compat)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ["test_modeling.py", "test_families.py", "test_attach.py", "test_every_method.py"]
# It asks for torchvision; on CPU, PyPI's is one for CUDA, whose operators are declared and never called.
START = "from playground.pocket.torchvision_mend import declare_operators; declare_operators()\n"


def oldest() -> str:
    """The lower bound of transformers."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bound,) = (found[1] for line in wanted if (found := re.match(r"transformers>=([\d.]+)", line)))
    return bound if bound.count(".") == 2 else f"{bound}.0"


@pytest.fixture(scope="module")
def interpreter() -> Path:
    """An environment with that release in front of what is installed here; it stays for the next time."""
    mark = hashlib.sha256(f"{sys.prefix} {importlib.metadata.version('torch')} {START}".encode()).hexdigest()[:8]
    cache = Path(os.environ.get("LLAVA_PRUMERGE_COMPAT") or Path(tempfile.gettempdir()) / "llava-prumerge-compat")
    folder = cache / f"transformers-{oldest()}-{mark}"
    python, done = folder / "bin" / "python", folder / "ready"
    if done.exists():
        return python
    venv.create(folder, clear=True, with_pip=True)
    place = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    wanted = [f"transformers=={oldest()}", "huggingface_hub<2", "tokenizers", "torchvision"]
    command = [python, "-m", "pip", "install", "-q", "--no-deps", *wanted]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (place / "sitecustomize.py").write_text(START)
    (place / "behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # comes last: what is here wins
    done.touch()
    return python


@pytest.mark.compat
def test_the_oldest_release_serves_the_model(interpreter: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    asked = [str(interpreter), "-c", "import transformers; print(transformers.__version__)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert version == oldest()
    files = [str(ROOT / "tests" / "model" / name) for name in TESTS]
    command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\d{3,} passed", done.stdout), done.stdout[-400:]
