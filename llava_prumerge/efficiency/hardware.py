"""Machines and what they can do at most: bandwidth, peaks and memory, from hardware.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from llava_prumerge.efficiency.errors import refuse

DATA = Path(__file__).with_name("hardware.yaml")


@dataclass(frozen=True)
class Hardware:
    """One GPU.

    Attributes:
        bandwidth: of its memory, bytes/s.
        fp16, int8: dense matrix peaks, operations/s.
        memory: bytes.
    """

    name: str
    bandwidth: float
    fp16: float
    int8: float
    memory: float


@cache
def all_hardware() -> dict[str, Hardware]:
    """The machines of hardware.yaml by name."""
    found = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return {name: Hardware(name, **entry) for name, entry in found.items()}


def hardware(name: str) -> Hardware:
    """A machine by name.

    Raises:
        EfficiencyError: it is not known.
    """
    if name not in all_hardware():
        raise refuse("hardware", name, all_hardware())
    return all_hardware()[name]
