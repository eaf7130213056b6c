"""Colours of all plots: told apart by people with any kind of colour vision (Okabe and Ito, 2008, and one of Tol's)."""

from __future__ import annotations

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, WINE = "#E69F00", "#56B4E9", "#000000", "#882255"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, WINE)
GREY = "#BBBBBB"


def darker(colour: str, share: float = 0.78) -> str:
    """The same hue for letters, which need more contrast than lines. Both are written #RRGGBB."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(share * part):02X}" for part in parts)
