"""What a prompt thinks of visual tokens: the attention of its last token, or of all its text, in one decoder layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llava_prumerge.ops.layout import TokenLayout, rows_of

ROWS = ("last", "text")


def prompt_attention(
    attention: Callable[[int, Tensor], Tensor], layout: TokenLayout, layer: int, rows: str = "last"
) -> Tensor:
    """Attention that each token receives from the prompt, the mean over heads.

    Args:
        attention: layer, rows [B, R] -> [B, H, R, L].
        layout: of the sequences.
        layer: which one is asked.
        rows: "last", the prompt's last token, in training the mean over the last of every turn's; "text", the mean over all
            its text tokens that see an image.

    Returns:
        [B, L].
    """
    if rows == "last" and layout.shift_labels is None:
        return attention(layer, layout.last_index()[:, None]).mean(dim=1)[:, 0]
    asked, weights = rows_of(layout.turn_ends()) if rows == "last" else layout.question_rows()
    received = attention(layer, asked).mean(dim=1)  # [B, R, L]
    return (weights[:, None] @ received)[:, 0] / weights.sum(dim=1, keepdim=True)
