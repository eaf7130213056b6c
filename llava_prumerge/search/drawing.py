"""Pictures of what a search found: the tokens that each layer keeps, and a matrix over pairs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from torch import Tensor


def draw_shares(path: Path, shares: Sequence[float], title: str) -> None:
    """A PNG of the share of visual tokens, in [0, 1], that each layer sees."""
    figure = Figure(figsize=(6.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.step(range(len(shares)), shares, where="mid", marker="o", markersize=3)
    axes.set(xlabel="layer", ylabel="share of visual tokens", ylim=(0.0, 1.05), title=title)
    axes.grid(alpha=0.3)
    _save(figure, path)


def draw_matrix(path: Path, matrix: Tensor, title: str) -> None:
    """A PNG of correlations [layers, layers] in [-1, 1]."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(matrix.tolist(), vmin=-1.0, vmax=1.0, cmap="coolwarm")
    axes.set(xlabel="layer", ylabel="layer", title=title)
    figure.colorbar(shown, ax=axes)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
