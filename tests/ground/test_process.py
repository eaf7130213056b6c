"""A process started without the scripts sets for itself what they export."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import ctypes, os, resource
from llava_prumerge.ground import process
if "--prepare" in __import__("sys").argv:
    process.prepare()
size = 64 << 20
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = library.malloc(size); ctypes.memset(first, 1, size); library.free(first)
before = faults()
second = library.malloc(size); ctypes.memset(second, 1, size)
print(os.environ.get("OMP_WAIT_POLICY"), faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def pages(*words: str, **more: str) -> tuple[str, int]:
        command = [sys.executable, "-c", CODE, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | more)
        policy, count = done.stdout.split()
        return policy, int(count)

    policy, fresh = pages()
    assert policy == "None" and fresh > 10
    assert pages("--prepare") == ("PASSIVE", 0) or pages("--prepare")[1] < fresh / 10
    assert pages("--prepare", OMP_WAIT_POLICY="ACTIVE", MALLOC_MMAP_MAX_="65536")[0] == "ACTIVE"
