"""The format of a record's `regions`: boxes in its image, and what each shows."""

from __future__ import annotations

from typing import Any


def read_regions(value: Any) -> list[dict[str, Any]]:
    """A record's `regions` as a list of `box` (four numbers) and `text`.

    Raises:
        ValueError: they are none; the message says what is wrong.
    """
    if not isinstance(value, list):
        raise ValueError("they must be a list")
    return [_read_region(region, number) for number, region in enumerate(value, start=1)]


def _read_region(region: Any, number: int) -> dict[str, Any]:
    if not isinstance(region, dict) or set(region) != {"box", "text"}:
        raise ValueError(f"number {number} must be {{'box': [x0, y0, x1, y1], 'text': text}} with no other key")
    box, text = region["box"], region["text"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the text of number {number} must say something")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_fraction, box)):
        raise ValueError(
            f"the box of number {number} must be four fractions of the image, each from 0 to 1, not pixels"
        )
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"the box of number {number} must be left, top, right, bottom, with some room between")
    return {"box": [float(side) for side in box], "text": text}


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
