"""Patches that show LLaVA's padding alone are found as its sizes say, on images padded and resized as LLaVA does."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_llava import pixels, rows_of, sample_rows, tiny_model

from llava_prumerge.data.images import padded_picture
from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.padding import padded_patches

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE, GRID = 336, (24, 24)


def seen(width: int, height: int, side: int = SIDE) -> torch.Tensor:
    """Noise of these sides, padded with the mean colour, resized and normalised. [1, 3, side, side]"""
    noise = torch.randint(0, 255, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = padded_picture(Image.fromarray(noise.numpy()), side, tuple(int(255 * part) for part in MEAN))
    levels = torch.frombuffer(bytearray(image.resize((side, side)).tobytes()), dtype=torch.uint8)
    colours = levels.view(side, side, 3).permute(2, 0, 1).float() / 255
    return ((colours - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


@pytest.mark.parametrize("width, height", [(640, 480), (480, 640), (400, 100), (336, 336), (500, 499)])
def test_rows_and_columns_of_padding_are_those_of_the_sizes(width: int, height: int) -> None:
    found = padded_patches(seen(width, height), GRID).view(GRID)
    short = round(min(width, height) * SIDE / max(width, height))
    first = (SIDE - short) // 2
    before, after = first // 14, (SIDE - short - first) // 14
    expected = torch.zeros(24, dtype=torch.bool)
    expected[:before] = expected[24 - after :] = True
    line = expected[:, None] if width > height else expected[None]
    assert torch.equal(found, line.expand(GRID))


def test_what_is_no_picture_or_all_padding_has_none() -> None:
    assert not padded_patches(torch.zeros(2, 3, 56, 56), (4, 4)).any()
    assert not padded_patches(torch.zeros(64, 1176), (8, 8)).any()


def test_mmtok_leaves_them_to_the_last() -> None:
    generator = torch.Generator().manual_seed(0)
    features, text = torch.randn(1, 16, 8, generator=generator), torch.randn(1, 4, 8, generator=generator)
    padding = torch.arange(16)[None] < 8
    image = VisionTokens(
        features, (4, 4), prompt=lambda: (text, torch.ones(1, 4, dtype=torch.bool)), padding=lambda: padding
    )
    kept = {size: build_reducer({"name": "mmtok", "budget": size})(image)[2][0].tolist() for size in (6, 8, 10)}
    assert min(kept[6]) >= 8 and kept[8] == list(range(8, 16)) and len(set(kept[10])) == 10
    other = build_reducer({"name": "mmtok", "budget": 6, "padding": "take"})(image)[2][0]
    assert int(other.min()) < 8


@torch.no_grad()
def test_the_model_tells_of_it() -> None:
    model, given = tiny_model({"vision": {"name": "mmtok", "budget": 5}}), []
    plain = model.model.reducer.forward
    model.model.reducer.forward = lambda image: given.append(image.padding()) or plain(image)
    images = pixels(4)
    images[:, :, : images.shape[2] // 4] = 0.001
    model(**rows_of(*sample_rows()), pixel_values=images)
    rows = model.config.vision_config.image_size // model.config.vision_config.patch_size
    assert given[0].view(4, rows, rows)[:, : rows // 4].all() and not given[0].view(4, rows, rows)[:, rows // 4 :].any()
