"""The second forward pass of a method that learns from the full model: the same frozen weights, without any method.

A method says that it `distils` (see `methods.base.Method`). Where it alone trains, a pass with labels runs the model twice
and its loss is the method's, whatever trainer asks for it. Where other weights train, too, the full model would be another
at each step, and the loss is the cross-entropy of every other method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import Method
from llava_prumerge.model.statistics import ReductionStatistics
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import IGNORE_INDEX


def methods_of(model: Any) -> list[Method]:
    """The reducer and the pruner of a model with its head, as far as there are any."""
    return [method for method in (model.model.reducer, model.model.decoder.pruner) if method is not None]


def learner_of(model: Any) -> Method | None:
    """The method that learns from the full model in this pass; None in inference, and where other weights train, too."""
    if not (model.training and torch.is_grad_enabled()):
        return None
    methods = methods_of(model)
    learner = next((method for method in methods if method.distils), None)
    if learner is None:
        return None
    own = {id(parameter) for method in methods for parameter in method.parameters()}
    if any(parameter.requires_grad and id(parameter) not in own for parameter in model.parameters()):
        return None
    return learner


@contextmanager
def without_methods(model: Any) -> Iterator[None]:
    """The stock model for a while; what it sees is counted nowhere."""
    host = model.model
    reducer, pruner, statistics = host.reducer, host.decoder.pruner, host.statistics
    host.use(None)
    host.decoder.pruner, host.statistics = None, ReductionStatistics()
    try:
        yield
    finally:
        host.use(reducer)
        host.decoder.pruner, host.statistics = pruner, statistics


@torch.no_grad()
def full_logits(model: Any, given: dict[str, Any]) -> Tensor:
    """Logits [B, L, V] of the model without its methods.

    In training mode like the pass that follows, so that all ranks call the same modules.

    Args:
        given: what `forward` was given, without labels.
    """
    with without_methods(model):
        return model(**given, return_dict=True).logits


def distilled(
    learner: Method, own: Tensor, targets: Tensor, full: Tensor, labels: Tensor, count: Tensor | int | None
) -> Tensor:
    """The learner's loss per supervised token.

    Args:
        learner: that learns.
        own: [B, L', V] logits with the methods.
        targets: [B, L'] what these are to predict.
        full: [B, L, V] logits without.
        labels: [B, L] the caller's.
        count: supervised tokens of the whole step, as Trainer counts them; None: those of this batch.

    Raises:
        ReductionError: the two passes do not predict the same tokens.
    """
    mine, theirs = targets != IGNORE_INDEX, labels[:, 1:] != IGNORE_INDEX
    wanted = labels[:, 1:][theirs]
    if not torch.equal(targets[mine], wanted.to(targets.device)):
        raise ReductionError(f"{learner.name}: the pass with it and the one without do not predict the same tokens")
    total = learner.distil(own[mine], full[:, :-1][theirs].to(own.device))
    return total / (max(len(wanted), 1) if count is None else count)
