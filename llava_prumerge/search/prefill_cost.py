"""The budget of tokens whose prefill costs a given share of the full one."""

from __future__ import annotations

from collections.abc import Callable

from llava_prumerge.search.command import SearchError

HALVINGS = 40


def budget_for(share: float, full: float, flops: Callable[[float], float], least: float, most: float) -> float:
    """The budget in (equivalent) tokens whose operations are a share of the full model's.

    Args:
        share: in (0, 1).
        full: operations of the full model.
        flops: budget -> operations, not falling.
        least, most: budgets to search between.

    Raises:
        SearchError: even the least budget costs more.
    """
    if flops(least) > share * full:
        raise SearchError(
            f"{share:g} of the full model's operations cannot be met: the least is {flops(least) / full:.3g}"
        )
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if flops(middle) <= share * full else (least, middle)
    return least
