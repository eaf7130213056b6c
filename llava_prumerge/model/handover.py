"""How features that are already made reach a stock `forward`: as its argument, or in place of what it would ask for.

Since transformers 5.18 a model's `forward` takes `mm_encoder_outputs`. The one of 5.17 swallows that name without a word
and asks `get_<modality>_features` itself; so while it runs, these give what was made before.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_prumerge.model.placement import VisualTokens

ARGUMENT = "mm_encoder_outputs"


@dataclass
class ReducedFeatures(BaseModelOutputWithPooling):
    """The stock output of `get_image_features`, and what its features are; a field, so that wrappers carry it along."""

    deepstack_features: list[list[Tensor]] | None = None
    visual_tokens: VisualTokens | None = None
    whole: list[Tensor] | None = None


def takes_features(kind: type, host: type) -> bool:
    """Whether the `forward` that comes behind `host` in the line of this class knows the argument; False for a host alone."""
    behind = kind.__mro__[kind.__mro__.index(host) + 1 :]
    stock = next((one for one in behind if "forward" in vars(one)), None)
    return stock is not None and ARGUMENT in inspect.signature(vars(stock)["forward"]).parameters


@contextmanager
def handed_over(model: nn.Module, features: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts, `get_<modality>_features` of the model gives these outputs."""
    names = {f"get_{modality}_features": _joined(output) for modality, output in features.items()}
    for name, output in names.items():
        vars(model)[name] = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for name in names:
            del vars(model)[name]


def _joined(output: Any) -> Any:
    """The same output, its `deepstack_features` one tensor a level: what is split by images there is joined later on today."""
    levels = getattr(output, "deepstack_features", None)
    if not levels or isinstance(levels[0], Tensor):
        return output
    joined = copy.copy(output)
    joined.deepstack_features = [torch.cat(list(level)) for level in levels]
    return joined
