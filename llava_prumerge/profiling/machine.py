"""What a measurement ran on: names and versions for the result file, and the peaks that floors are computed from."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from llava_prumerge.efficiency.hardware import Hardware, all_hardware
from llava_prumerge.profiling.timing import Action, take_turns

NAMES = {
    "V100": r"V100",
    "A100-40": r"A100.*40GB",
    "A100-80": r"A100.*80GB",
    "H100": r"H100(?!.*(NVL|PCIe))",
    "H200": r"H200",
    "A6000": r"RTX A6000",
    "L40": r"L40\b",
    "RTX-4090": r"RTX 4090(?! (D|Laptop))",
}
"""How the driver calls the machines of hardware.yaml. Boards of other speed under a similar name are not among them."""
SIDE = {"cpu": 1024, "cuda": 8192}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Size of the matrices and bytes of the copy with which peaks are measured."""


@dataclass(frozen=True)
class Peaks:
    """What a device can do at most.

    Attributes:
        bandwidth: bytes/s.
        operations: of matrix products, operations/s.
        source: "data sheet of NAME", or "measured".
    """

    bandwidth: float
    operations: float
    source: str

    def best(self, other: Peaks) -> Peaks:
        """What the machine gave at its best, before a measurement or after it."""
        return Peaks(max(self.bandwidth, other.bandwidth), max(self.operations, other.operations), self.source)

    def hardware(self, width: int) -> Hardware:
        """For the roofline functions, which count 2 bytes per number: numbers of `width` bytes move so much slower."""
        bandwidth = self.bandwidth * 2 / width
        return Hardware(self.source, bandwidth, self.operations, self.operations, float("inf"))


def find_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """From the data sheet where the GPU is known and computes in 16 bits, else measured."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for known, pattern in NAMES.items():
            if re.search(pattern, name):
                machine = all_hardware()[known]
                return Peaks(machine.bandwidth, machine.fp16, f"data sheet of {known}")
    return measure_peaks(device, dtype)


@torch.inference_mode()
def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best of a few large matrix products and copies: what this machine gives today, with its threads and clocks."""
    side, size = SIDE[device.type], COPIED[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    actions = {
        "product": Action(lambda _: left @ right),
        "copy": Action(lambda _: target.copy_(source)),
    }
    times = take_turns(actions, device, repeats=5)
    return Peaks(2 * size / min(times["copy"]), 2 * side**3 / min(times["product"]), "measured")


def describe(device: torch.device) -> dict[str, Any]:
    """What a result file says about where it was measured."""
    import transformers

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _processor(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    """The processor's name, as Linux knows it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def result_of_shares(what: str, target_percent: float, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The result of a measurement on the CPU whose rows each have a `share_percent` that should stay below a target."""
    worst = max(row["share_percent"] for row in rows)
    told = {"target_percent": target_percent, "worst_percent": worst, "rows": rows}
    return {"what": what, "machine": describe(torch.device("cpu")), **more, **told}
