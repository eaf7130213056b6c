"""The error of the analytic side: what was asked cannot be computed."""

from __future__ import annotations

from collections.abc import Iterable

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known


class EfficiencyError(InputError):
    """A model, a machine or a number of tokens that no cost can be given for."""


def refuse(kind: str, given: object, known: Iterable[str]) -> EfficiencyError:
    """The error for a name that is not in a list, which it gives."""
    return EfficiencyError(not_known(kind, given, known))
