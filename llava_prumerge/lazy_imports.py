"""What has to happen when a heavy library is first imported, without importing it ourselves.

- torchvision: PyPI's wheel is linked against CUDA. Beside a CPU build of torch its C++ operators do not load, and registering their
  fake kernels raises. Declaring the operators' schemas first lets the Python part (all that open_clip needs) import.
- transformers' Auto classes: registering our classes needs the whole of Llava (10 CPU-seconds), so it waits for the Auto modules.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

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


def register_config() -> None:
    """Let `AutoConfig` read `model_type: llava_prumerge`."""
    importlib.import_module("llava_prumerge.model.configuration").register()


def register_model() -> None:
    """Let `AutoModelForImageTextToText` build our model, and checkpoints of stock Llava load into it."""
    importlib.import_module("llava_prumerge.model.modeling").register()


_BEFORE: dict[str, Callable[[], None]] = {"torchvision": declare_torchvision_ops}
_AFTER: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_config,
    "transformers.models.auto.modeling_auto": register_model,
}


class _ThenCall(importlib.abc.Loader):
    """A loader that runs the wrapped one and then a function."""

    def __init__(self, loader: importlib.abc.Loader, function: Callable[[], None]) -> None:
        self.loader, self.function = loader, function

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.function()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it wraps what the other finders return for the names above."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _BEFORE and name not in _AFTER:
            return None
        if name in _BEFORE:
            _BEFORE[name]()
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if name in _AFTER and spec.loader is not None:
                    spec.loader = _ThenCall(spec.loader, _AFTER[name])
                return spec
        return None


def install() -> None:
    """Put the finder first; what is imported already is registered at once. Calling it again changes nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, function in _AFTER.items():
        if name in sys.modules:
            function()
