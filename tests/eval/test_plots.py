"""Plots of scores: the best lines are named at their ends in colours of their own, and no name lies over another."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from llava_prumerge.evaluation.compare import compare, main
from llava_prumerge.evaluation.compare_plot import panels_of
from llava_prumerge.evaluation.plots import (
    BOTH,
    DECODER,
    STYLES,
    TRAINED,
    VISION,
    Level,
    Line,
    Panel,
    best_of,
    figure_of,
    line_of,
    spread,
)
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.ground.palette import COLOURS, GREY


def fan(count: int) -> list[Line]:
    """Lines of falling score, of all kinds in turn."""
    kinds = list(STYLES)
    return [line_of(f"m{at}", kinds[at % 4], {72: 80 - at / 4, 36: 70 - at, 9: 50 - 2 * at}) for at in range(count)]


def test_the_best_are_named_and_the_rest_is_grey() -> None:
    lines = fan(12)
    figure = figure_of([Panel("All", list(reversed(lines)), [Level("full", 81.0, 2.0)])], "tokens", "made by hand")
    (axis,) = figure.axes
    drawn = {line.get_gid(): line for line in axis.lines if line.get_gid() in {one.name for one in lines}}
    assert list(drawn) == [f"m{at}" for at in range(8)], "best first"
    assert [to_rgb(line.get_color()) for line in drawn.values()] == [to_rgb(colour) for colour in COLOURS]
    for at, line in enumerate(drawn.values()):
        style = STYLES[lines[at].kind]
        assert (line.get_linestyle(), line.get_marker()) == (style["linestyle"], style["marker"])
        assert list(line.get_xdata()) == [9, 36, 72], "by rising tokens"
    grey = [line for line in axis.lines if line.get_gid() == "grey"]
    assert len(grey) == 4 and {line.get_color() for line in grey} == {GREY}
    names = {text.get_text(): text for text in axis.texts}
    assert set(names) == {*drawn, "full"} and axis.get_title(loc="left") == "All (grey: 4 more)"
    assert [names[f"m{at}"].xy for at in range(8)] == [(72, 80 - at / 4) for at in range(8)], "joined to the line's end"
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(names[name]) for name in drawn), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes)), "names that can be read"
    assert all(box.x0 > axis.get_window_extent().x1 and box.x1 < figure.bbox.x1 for box in boxes), "beside the panel"


def test_a_line_counts_by_how_far_it_lies_above_the_others_at_its_own_tokens() -> None:
    low = Line("cheap", VISION, ((9, 60.0),))  # ten above the middle one there
    rest = [Line(f"r{at}", VISION, ((9, 50.0 - at), (72, 80.0 + at))) for at in range(3)]
    high = Line("dear", DECODER, ((72, 83.0),))  # two above the middle one there
    assert [line.name for line in best_of([high, *rest, low])][:2] == ["cheap", "dear"]


@pytest.mark.parametrize(
    "places, expected",
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.98, 0.99], [0.9, 1.0]),
        ([0.0, 0.02, 0.05], [0.0, 0.1, 0.2]),
        ([0.9, 0.1, 0.85, 0.12], [0.925, 0.06, 0.825, 0.16]),
    ],
)
def test_names_move_as_little_as_needs_be(places: list[float], expected: list[float]) -> None:
    assert spread(places, 0.1) == pytest.approx(expected)


def test_nothing_to_plot_is_said() -> None:
    with pytest.raises(EvaluationError, match="nothing to plot"):
        figure_of([Panel("empty", [])], "tokens")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """POPE of prumerge at two budgets, of fastv, of a pair, of a trained one, and without a method."""

    def save(name: str, method: str, tokens: float | None, value: float, **more: Any) -> None:
        row = {"model": "tiny", "label": name, "method": method, "train": "none", "images": "on"} | more
        kept = None if tokens is None else {"mean": 144.0, "equivalent": tokens, "share": 25.0}
        told = {
            "value": value,
            "interval_95": [value - 3, value + 3],
            "n": 4,
            "metric": "mean_f1",
            "marks": [1, 0, 0, 1],
        }
        path = tmp_path / "results" / name / "pope.json"
        path.parent.mkdir(parents=True)
        path.write_text(
            json.dumps({"task": "pope", "row": row, "kept": kept, "generation": {"questions": "q"}, **told})
        )

    save("none", "none", 144.0, 80.0)
    save("blind", "none", None, 40.0, images="off")
    save("p72", "prumerge", 72.0, 75.0)
    save("p36", "prumerge", 36.0, 70.0)
    save("f", "fastv", 36.0, 71.0)
    save("pair", "prumerge+fastv", 30.0, 60.0)
    save("lora", "prumerge", 36.0, 77.0, train="lora")
    return tmp_path / "results"


def test_compare_draws_what_its_table_says(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (panel,) = panels_of(compare([results]))
    assert panel.title == "POPE"
    assert {(level.name, level.score, level.half) for level in panel.levels} == {
        ("no method", 80.0, 3.0), ("no images", 40.0, 3.0)
    }  # fmt: skip
    assert set(panel.lines) == {
        Line("prumerge", VISION, ((36.0, 70.0), (72.0, 75.0))),
        Line("fastv", DECODER, ((36.0, 71.0),)),
        Line("prumerge+fastv", BOTH, ((30.0, 60.0),)),
        Line("prumerge, lora", TRAINED, ((36.0, 77.0),)),
    }
    target = tmp_path / "new" / "plot.png"
    assert not main([str(results), "--plot", str(target)])
    assert "pair (none, on)" in capsys.readouterr().out
    with Image.open(target) as picture:
        assert picture.format == "PNG" and picture.width == 900
    assert main([str(results), "--plot", str(tmp_path / "plot.svg")]) == 2
    assert "must end in .png" in capsys.readouterr().err
