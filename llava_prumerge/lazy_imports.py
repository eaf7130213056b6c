"""What has to happen when a heavy library is first imported, without importing it ourselves.

- torchvision: PyPI's wheel is linked against CUDA. Beside a CPU build of torch its C++ operators do not load, and registering their
  fake kernels raises. Declaring the operators' schemas first lets the Python part (all that open_clip needs) import.
- transformers' Auto classes: registering ours needs the whole of Llava (10 CPU-seconds), so it waits until the Auto modules are
  imported, and then until no module of transformers or of ours is half way through its own import.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

_TORCHVISION_OPS = ("nms", "qnms")
_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_WATCHED = ("transformers.", "llava_prumerge.")
_REGISTERING = {  # once the first is imported, the second registers itself by being imported
    "transformers.models.auto.configuration_auto": "llava_prumerge.model.configuration",
    "transformers.models.auto.modeling_auto": "llava_prumerge.model.modeling",
}


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


def register_classes() -> None:
    """Import our classes for whichever Auto modules are there; each registers itself at its end."""
    for auto, ours in _REGISTERING.items():
        if auto in sys.modules and ours not in sys.modules:
            importlib.import_module(ours)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it follows the imports of the watched packages, and acts when the outermost is through."""

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            declare_torchvision_ops()
        if not name.startswith(_WATCHED):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._follow(spec)
                return spec
        return None

    def _follow(self, spec: importlib.machinery.ModuleSpec) -> None:
        if spec.loader is None:
            return
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                run(module)
            finally:
                self.depth -= 1
            if self.depth == 0:
                register_classes()

        spec.loader.exec_module = exec_module


def install() -> None:
    """Put the finder first, and register at once what is imported already. Calling it again changes nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    register_classes()
