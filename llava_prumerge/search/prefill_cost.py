"""Floating-point operations of the decoder's prefill, and the budget of tokens that costs a given share of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llava_prumerge.search.calibration import SearchError

HALVINGS = 40


def prefill_flops(config: Any, tokens: Sequence[float]) -> float:
    """Operations of the decoder layers; a multiplication and an addition are two.

    Per layer of n tokens n * (4 D^2 + 4 D D_kv + 6 D M) for the projections (D the width, D_kv that of keys and values,
    M the width inside the MLP) and 4 n^2 D for attention: the formula of VisPCO (ACL 2026), 24 n D^2 + 4 n^2 D, with
    Llama's own matrices.

    Args:
        config: of the language model.
        tokens: n of each layer.
    """
    width, inner = config.hidden_size, config.intermediate_size
    heads = width // config.num_attention_heads if getattr(config, "head_dim", None) is None else config.head_dim
    keys = config.num_key_value_heads * heads
    each = 4 * width * width + 4 * width * keys + 6 * width * inner
    return sum(count * each + 4 * count * count * width for count in tokens)


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
