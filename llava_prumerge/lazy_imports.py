"""Makes PyPI's torchvision importable beside a CPU build of torch, when and if it is imported.

PyPI's wheel is linked against CUDA. Beside a CPU build of torch its C++ operators do not load, and registering their fake kernels raises.
Declaring the operators' schemas first lets the Python part (all that open_clip needs) import.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys

_TORCHVISION_OPS = ("nms", "qnms")
_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_torchvision_ops() -> None:
    """Declare the schemas torchvision attaches fake kernels to, where torch was built without CUDA or ROCm."""
    import torch

    if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        return
    for name in _TORCHVISION_OPS:
        try:
            torch.library.define(f"torchvision::{name}", _NMS_SCHEMA)
        except RuntimeError:  # already declared: a torchvision built for this torch is there
            continue


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            declare_torchvision_ops()
        return None


def install() -> None:
    """Put the finder first. Calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
