"""Regions of records: which are accepted, and where they come to lie in what the tower sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.data.records import normalise_record
from llava_prumerge.data.region_format import read_regions

GOOD = {"box": [0, 0.25, 1, 0.5], "text": "red star"}


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"box": [0, 0, 1, 1]}, "they must be a list"),
        (["red"], r"number 1 must be \{'box': \[x0, y0, x1, y1\], 'text': text\} with no other key"),
        ([GOOD, {"box": [0, 0, 1, 1]}], "number 2 must be"),
        ([GOOD | {"label": 3}], "number 1 must be"),
        ([GOOD | {"text": " "}], "the text of number 1 must say something"),
        ([GOOD | {"text": 7}], "the text of number 1 must say something"),
        ([GOOD | {"box": [0, 0, 1]}], "the box of number 1 must be four fractions"),
        ([GOOD | {"box": [0, 0, 336, 336]}], "the box of number 1 must be four fractions"),
        ([GOOD | {"box": [0, float("nan"), 1, 1]}], "the box of number 1 must be four fractions"),
        ([GOOD | {"box": [0, True, 1, 1]}], "the box of number 1 must be four fractions"),
        ([GOOD | {"box": [0.5, 0, 0.5, 1]}], "left, top, right, bottom, with some room between"),
        ([GOOD | {"box": [0, 0.6, 1, 0.5]}], "left, top, right, bottom, with some room between"),
    ],
)
def test_what_is_no_region_is_said(regions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_regions(regions)
    record = normalise_record({"conversations": [], "image": "a.png", "regions": regions}, 0)
    assert record["regions"] is None, "to whoever does not ask for them the record is sound"
    assert [note.startswith("regions: ") for note in record["notes"]] == [True]


def test_regions_are_read() -> None:
    record = normalise_record({"conversations": [], "image": "a.png", "regions": [GOOD]}, 0)
    assert record["regions"] == [{"box": [0.0, 0.25, 1.0, 0.5], "text": "red star"}] and not record["notes"]
    assert normalise_record({"conversations": []}, 0)["regions"] is None
    assert normalise_record({"conversations": [], "regions": []}, 0)["regions"] == []


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("size", [(40, 40), (80, 40), (50, 95)])
def test_a_box_is_where_its_pixels_are(size: tuple[int, int], aspect: str) -> None:
    """A white box on black, found again in the pixels that the tower gets."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    preprocessor = ImagePreprocessor(processor, aspect)
    box = (0.4, 0.3, 0.6, 0.6)
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = (round(side * size[at % 2]) for at, side in enumerate(box))
    picture[top:bottom, left:right] = 255
    pixels = preprocessor([Image.fromarray(picture)])[0].mean(dim=0)
    white = (pixels > (pixels.max() + pixels.min()) / 2).nonzero()
    found = [white[:, 1].min(), white[:, 0].min(), white[:, 1].max() + 1, white[:, 0].max() + 1]
    placed = preprocessor.locate(size, [side / size[at % 2] for at, side in enumerate((left, top, right, bottom))])
    assert [float(side) / 56 for side in found] == pytest.approx(placed, abs=1.01 / 56)
