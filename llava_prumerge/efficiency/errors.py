"""The error of the analytic side: what was asked cannot be computed."""

from __future__ import annotations

from collections.abc import Iterable


class EfficiencyError(ValueError):
    """A model, a machine or a number of tokens that no cost can be given for."""


def refuse(kind: str, given: object, known: Iterable[str]) -> EfficiencyError:
    """The error for a name that is not in a list, which it gives."""
    return EfficiencyError(f"{kind} {given!r} is not known; there are: {', '.join(known)}")
