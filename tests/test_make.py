"""What `make` prepares and removes, with a Python that prints what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
# Versions of torch and torchvision, CUDA's of torch, whether it is a system's Python; pip prints its constraints.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"m.version(sys.argv[1])"*torch) [[ -n "$TORCH" ]] && echo "$TORCH" ;;
    *"m.version(sys.argv[1])"*) exit 1 ;;
    *torch.version.cuda*) echo "${CUDA-12.8}" ;;
    *EXTERNALLY-MANAGED*) exit "${MANAGED:-0}" ;;
    *sys.version_info*) exit "${OLD:-0}" ;;
    *"pip --version"*) exit "${NO_PIP:-0}" ;;
    *flash-attn*) echo "flash $*"; exit "${FLASH_FAILS:-0}" ;;
    *" -c "*"install"*|*install*" -c "*) echo "pip $*"; while [[ "$1" != -c ]]; do shift; done; grep -E "^(torch|numpy)" "$2" ;;
    *) echo "run $*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what make needs, with a Python on PATH alone."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    hidden = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON", "FLASH", "CONFIRM", "PIP_BREAK_SYSTEM_PACKAGES")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    told = kept | {"PATH": f"{checkout}/bin:{os.environ['PATH']}", "TORCH": "2.9.1+cu128"} | variables
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=checkout, env=told, input=typed, capture_output=True, text=True, check=False)


def test_setup_gpu_keeps_torch_and_constraints_and_leaves_flash_attention_out(checkout: Path) -> None:
    done = make(checkout, "setup-gpu")
    assert done.returncode == 0, done.stderr
    assert "flash" not in done.stdout and f"-e {checkout}[eval]" in done.stdout
    constrained = [line for line in done.stdout.splitlines() if "==" in line]
    tested = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("numpy=="))
    assert sorted(constrained) == sorted(
        [tested, "torch==2.9.1+cu128", *[x for x in constrained if "torchvision" in x]]
    )
    assert "torch 2.9.1+cu128 stays" in done.stderr and f"{checkout}/bin/python (found in PATH" in done.stderr
    assert done.stdout.splitlines()[-1] == "run -m llava_prumerge.model.devices"
    done = make(checkout, "setup-gpu", "FLASH=1")
    assert done.returncode == 0 and "flash -m pip" in done.stdout and "--no-build-isolation" in done.stdout


def test_setup_gpu_without_torch_takes_the_tested_one(checkout: Path) -> None:
    done = make(checkout, "setup-gpu", TORCH="")
    tested = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert done.returncode == 0 and tested in done.stdout.splitlines() and "no torch is here" in done.stderr


@pytest.mark.parametrize("active", ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON"])
def test_setup_gpu_installs_into_the_active_environment(checkout: Path, tmp_path: Path, active: str) -> None:
    for place in ("env", ".venv"):
        (tmp_path / place / "bin").mkdir(parents=True)
        shutil.copy(checkout / "bin" / "python", tmp_path / place / "bin")
    path = tmp_path / "env" / ("bin/python" if active == "PYTHON" else "")
    done = make(checkout, "setup-gpu", **{active: str(path)})
    assert f"into the environment of {tmp_path}/env/bin/python" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MANAGED": "1"}, "belongs to the system, which forbids pip to change it (PEP 668): python3 -m venv"),
        ({"NO_PIP": "1"}, "has no pip"),
        ({"OLD": "1"}, "Python 3.11 or newer is needed"),
        ({"CUDA": "None"}, "torch 2.9.1+cu128 in this environment is a build without CUDA"),
        ({"FLASH": "1", "FLASH_FAILS": "1"}, "flash-attn cannot be installed here"),
    ],
)
def test_setup_gpu_says_in_one_line_why_not(checkout: Path, variables, message: str) -> None:
    done = make(checkout, "setup-gpu", **variables)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and message in line
    assert ("pip -m pip" in done.stdout) == ("FLASH" in variables)  # nothing was installed before


def test_a_systems_python_may_be_overruled(checkout: Path) -> None:
    assert make(checkout, "setup-gpu", MANAGED="1", PIP_BREAK_SYSTEM_PACKAGES="1").returncode == 0


# Makes environments that are copies of itself; an environment without pip has a file of that name.
SETUP_PYTHON = """#!/usr/bin/env bash
here="$(dirname "$0")"
case "$*" in
    *"-m venv --clear"*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    *"pip --version"*) [[ ! -e "$here/no-pip" ]] ;;
    *"m.version(sys.argv[1])"*torch) echo 2.13.0+cpu ;;
    *"m.version(sys.argv[1])"*|*--report*) exit 1 ;;
    *sys.version_info*) exit "${OLD:-0}" ;;
    *ensurepip*) exit "${NO_VENV:-0}" ;;
    --version) echo Python 3.12.1 ;;
    *install*) echo "Collecting $*"; echo "Requirement already satisfied: x"; exit "${PIP_FAILS:-0}" ;;
esac
"""


def set_up(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (checkout / "bin" / "python3").write_text(SETUP_PYTHON)
    (checkout / "bin" / "python3").chmod(0o755)
    return make(checkout, "setup", **variables)


@pytest.mark.parametrize("before", ["nothing", "no pip", "broken", "whole"])
def test_setup_makes_or_mends_the_environment(checkout: Path, before: str) -> None:
    venv = checkout / ".venv"
    if before != "nothing":
        (venv / "bin").mkdir(parents=True)
        (venv / "old").touch()
        shutil.copy(checkout / "bin" / "python", venv / "bin" / "python")
    if before in ("no pip", "whole"):
        (venv / "bin" / "python").write_text(SETUP_PYTHON)
    if before == "no pip":
        (venv / "bin" / "no-pip").touch()
    if before == "broken":  # the interpreter it led to has gone
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to(checkout / "gone")
    done = set_up(checkout)
    assert done.returncode == 0, done.stderr
    assert (venv / "old").exists() == (before == "whole") and (venv / ".ready").exists()
    assert ("it is made anew" in done.stderr) == (before in ("no pip", "broken"))
    told = [line for line in done.stderr.splitlines() if line.startswith("[setup] ")]
    assert len(told) >= 2 and told[-1].startswith("[setup] ready: Python 3.12.1, torch 2.13.0+cpu")
    assert "Collecting -m pip" in done.stdout and "-c constraints.txt -e .[dev]" in done.stdout
    assert "already" not in done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OLD": "1"}, "Python 3.12.1 is too old: Python 3.11 or newer is needed"),
        ({"NO_VENV": "1"}, "apt-get install python3-venv"),
        ({"PYTHON": "nowhere/python"}, "there is no nowhere/python here"),
        ({"PIP_FAILS": "1"}, "pip could not install everything"),
    ],
)
def test_setup_says_in_one_line_why_not(checkout: Path, variables, message: str) -> None:
    done = set_up(checkout, **variables)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and message in line and not (checkout / ".venv" / ".ready").exists()


def test_setup_leaves_what_a_link_leads_to(checkout: Path) -> None:
    (checkout / "shared").mkdir()
    (checkout / "shared" / "file").touch()
    (checkout / ".venv").symlink_to(checkout / "shared")
    done = set_up(checkout)
    assert done.returncode == 2 and ".venv is a link to" in done.stderr and (checkout / "shared" / "file").exists()


@pytest.fixture
def runs(checkout: Path) -> Path:
    for path in ("runs/llava-7b/merged/model.safetensors", "runs/.hidden", "playground/pocket/data/a.json"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text("weights")
    return checkout / "runs"


def test_clean_leaves_runs_alone(checkout: Path, runs: Path) -> None:
    assert make(checkout, "clean").returncode == 0
    assert (runs / "llava-7b" / "merged" / "model.safetensors").exists()
    assert not (checkout / "playground" / "pocket" / "data").exists()


@pytest.mark.parametrize(("typed", "confirm"), [("", ""), ("y\n", ""), ("no\n", ""), ("yes\n", "no")])
def test_clean_runs_asks(checkout: Path, runs: Path, typed: str, confirm: str) -> None:
    done = make(checkout, "clean-runs", f"CONFIRM={confirm}", typed=typed)
    assert done.returncode != 0 and "nothing was removed" in done.stderr
    assert "runs/llava-7b" in done.stdout and (runs / "llava-7b" / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(("typed", "confirm"), [("yes\n", ""), ("", "yes")])
def test_clean_runs_removes_when_told(checkout: Path, runs: Path, typed: str, confirm: str) -> None:
    done = make(checkout, "clean-runs", f"CONFIRM={confirm}", typed=typed)
    assert done.returncode == 0 and "runs/llava-7b" in done.stdout and list(runs.iterdir()) == []
    assert make(checkout, "clean-runs").stdout == "runs/ holds nothing\n"


def test_clean_runs_does_not_follow_a_link(checkout: Path, runs: Path) -> None:
    runs.rename(checkout / "disk")
    runs.symlink_to(checkout / "disk")
    done = make(checkout, "clean-runs", "CONFIRM=yes")
    assert done.returncode == 2 and "runs is a link" in done.stderr and (checkout / "disk" / "llava-7b").exists()
