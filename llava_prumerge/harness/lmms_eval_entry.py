"""What lmms-eval reads to know of our models: their name, and where the class is. Imports neither torch nor the class."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The entry of the group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("llava_prumerge", chat_class_path="llava_prumerge.harness.lmms_eval.LlavaPruMerge")
