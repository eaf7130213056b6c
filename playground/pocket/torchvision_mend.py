"""Makes open_clip importable where torchvision is PyPI's, linked against CUDA, and torch a CPU build.

torchvision's C++ operators do not load there, and registering their fake kernels raises. Declaring the operators' schemas
first lets its Python part import, which is all that open_clip needs. transformers cannot be used in such an environment: a
process that needs both calls this before it imports either.
"""

from __future__ import annotations

import importlib.util

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_operators() -> None:
    """Declare the schemas that torchvision attaches fake kernels to, where torch was built without CUDA or ROCm."""
    if importlib.util.find_spec("torchvision") is None:
        return
    import torch

    if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        return
    for name in _OPERATORS:
        try:
            torch.library.define(f"torchvision::{name}", _SCHEMA)
        except RuntimeError:  # declared already: by an earlier call, or by a torchvision built for this torch
            continue
