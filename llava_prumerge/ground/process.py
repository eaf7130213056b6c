"""What a process sets for itself before it computes, where no script has set it in the environment."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's names for them, from malloc.h
_LARGE = 2**31 - 1


def prepare() -> None:
    """Quiet threads and memory that is kept: what the scripts export. To be called before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve whatever else runs
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor, where the environment says nothing else. -> whether it does

    It gives every large tensor back to the system and asks for it again, which is a third of a training step on CPU.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_MAX_" in os.environ:
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _LARGE))
