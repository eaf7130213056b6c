"""A machine that launchers are tried on: a checkout's scripts, GPUs and a Python that print instead of computing."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
FAKES = Path(__file__).with_name("fakes")
UUIDS = ("GPU-5c89852c-1111", "GPU-5c89aaaa-2222", "GPU-0ffe0000-3333", "GPU-0ffe1111-4444")
# Prints its own path and arguments; --check passes, and the version of torch is told.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *found.version*) echo 2.13.0 ;;
    *--check*) echo "check WORLD_SIZE=${WORLD_SIZE:-}" ;;
    *llava_prumerge.model.devices*) echo "devices" ;;
    *) echo "run $0 $*"; echo "visible=${CUDA_VISIBLE_DEVICES-unset} path=$PYTHONPATH safe=$PYTHONSAFEPATH port=${MASTER_PORT-}" ;;
esac
"""
SRUN = '#!/usr/bin/env bash\nprintf "%s\\n" "$MASTER_ADDR" "$MASTER_PORT" "$@"\necho "OMP=$OMP_NUM_THREADS SITE=${SITE_WAS_READ-}"\n'
CLEARED = (
    *("CUDA_VISIBLE_DEVICES", "GPUS", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "HOSTFILE", "LAUNCHER"),
    *(
        "PYTHON",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "CONDA_DEFAULT_ENV",
        "RECIPE",
        "METHOD",
        "TASK",
        "PYTHONPATH",
        "WORLD_SIZE",
    ),
    *("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK", "SLURM_SUBMIT_DIR", "CHECKOUT", "SITE", "OMP_NUM_THREADS"),
)


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@dataclass
class Host:
    """A machine with a checkout of its own, GPUs, and a Python that tells how it was called.

    Attributes:
        folder: of everything; `checkout` is the copy of the scripts, `home` where the user stands.
        listing: what `nvidia-smi -L` prints; None: there is no nvidia-smi.
        variables: of the user.
    """

    folder: Path
    listing: str | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkout, self.home, self.bin = (self.folder / name for name in ("checkout", "home", "bin"))
        shutil.copytree(SCRIPTS, self.checkout / "scripts")
        (self.checkout / "configs").symlink_to(REPOSITORY / "configs")
        self.home.mkdir()
        executable(self.bin / "python", PYTHON)
        for name in ("scontrol", "srun"):
            shutil.copy(FAKES / name, self.bin)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A script of the checkout, started from `home`."""
        if self.listing is not None:
            (self.folder / "listing").write_text(self.listing)
            executable(self.bin / "nvidia-smi", f'#!/bin/sh\n[ "$*" = -L ] || exit 64\ncat "{self.folder}/listing"\n')
        kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
        told = kept | {"PATH": f"{self.bin}:{os.environ['PATH']}"} | self.variables | variables
        command = ["bash", str(self.checkout / "scripts" / script), *arguments]
        return subprocess.run(command, cwd=self.home, env=told, capture_output=True, text=True, timeout=60, check=False)

    def in_slurm(self) -> Host:
        """Inside a job of eight tasks: srun prints its address, its port and its command line."""
        self.variables = {
            "SLURM_SUBMIT_DIR": str(self.checkout),
            "SLURM_JOB_NODELIST": "node-0",
            "SLURM_JOB_ID": "123456",
            "SLURM_NTASKS": "8",
            "SLURM_CPUS_PER_TASK": "6",
            "REQUEUED": str(self.folder / "requeued"),
        }
        executable(self.bin / "srun", SRUN)
        return self


def listing(uuids: tuple[str, ...] = UUIDS) -> str:
    return "".join(f"GPU {at}: NVIDIA A100-SXM4-80GB (UUID: {uuid})\n" for at, uuid in enumerate(uuids))


def started(result: subprocess.CompletedProcess[str]) -> str:
    """The line that would have started the run."""
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("run ")]
    return line


def processes(line: str) -> int:
    words = line.split()
    return int(words[words.index("--nproc_per_node") + 1]) if "--nproc_per_node" in words else 1
