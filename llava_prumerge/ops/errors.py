"""The error of all reduction methods, here so that the mathematics below them can raise it too."""

from __future__ import annotations

from llava_prumerge.ground.errors import InputError


class ReductionError(InputError):
    """A reduction setting or an input that a method cannot work with."""
