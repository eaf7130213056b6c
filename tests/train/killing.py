"""Training runs that can be killed: processes of their own, and what a run that was killed must end as."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 300


class Runs:
    """Training runs one after another, each in a process that can be killed."""

    def __init__(self) -> None:
        variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("fork_worker.py"))]
        self.errors = ""
        self.worker = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.read() == "ready"

    def read(self) -> str:
        """Next answer. Runs print to the same pipe; theirs are no numbers."""
        for line in self.worker.stdout:
            if line.strip() == "ready" or line.strip().lstrip("-").isdecimal():
                return line.strip()
        raise AssertionError("the worker has ended")

    def start(self, tokens: list[str], death: dict[str, Any] | None = None) -> int:
        """-> process id

        Args:
            death: where it is to be killed (`fork_worker.Death`).
        """
        self.worker.stdin.write(json.dumps(tokens if death is None else [tokens, death]) + "\n")
        self.worker.stdin.flush()
        return int(self.read())

    def status(self) -> int:
        """Of the run that was started, once it ends: its exit status, or minus a signal."""
        return int(self.read())

    def close(self) -> None:
        self.worker.stdin.close()
        self.worker.wait(PATIENCE)


def losses_of(run: Path) -> dict[int, float]:
    """By step; a torn last line of a killed run is no line."""
    found = {}
    file = run / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["step"]] = entry["loss"]
    return found


def wait_for(condition, what: str) -> None:
    """Until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


def assert_same_result(run: Path, straight: Path) -> None:
    assert losses_of(run) == losses_of(straight)
    for file in straight.glob("*.safetensors"):
        expected, found = load_file(file), load_file(run / file.name)
        assert expected.keys() == found.keys() and len(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
