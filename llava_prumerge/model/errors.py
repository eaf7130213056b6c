"""The error of the model's side: what a model is given, or asked to do, cannot be done with it."""

from __future__ import annotations

from llava_prumerge.ground.errors import InputError


class ModelError(InputError):
    """A model, a configuration or an input that cannot be used so; the message is one line that says what can."""
