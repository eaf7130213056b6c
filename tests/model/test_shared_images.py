"""Equal images given once, and decoding steps laid out in few calls: the same numbers as the long way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, rows_of, tiny_model

from llava_prumerge.methods.base import ReductionError, VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer, discover
from llava_prumerge.model.decoder import step_layout
from llava_prumerge.model.placement import ForwardPass

REDUCTIONS: list[dict[str, Any] | None] = [
    None,
    {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}},
    {"vision": {"name": "random"}},
    {"vision": {"name": "trsm"}},
    {"vision": {"name": "fastervlm"}},
]


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Three sequences, the second with two images; of four images two are equal."""
    picture = [IMAGE] * PATCHES
    given = rows_of([1, *picture, 5, 6], [1, 7, *picture, 8, *picture, 9], [1, *picture, 5, 6, 7])
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return given, pixels


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda block: "none" if not block else block["vision"]["name"])
def test_equal_images_may_be_given_once(reduction: dict[str, Any] | None) -> None:
    model, (given, pixels), index = tiny_model(reduction), batch(), torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        once = model(**given, pixel_values=pixels, image_index=index).logits
        each = model(**given, pixel_values=pixels[index]).logits
    torch.testing.assert_close(once, each, atol=1e-5, rtol=1e-4)
    assert once.shape[1] < given["input_ids"].shape[1] or reduction is None
    for beams in (1, 2):
        answers = [
            model.generate(**given, **images, max_new_tokens=4, num_beams=beams, do_sample=False)
            for images in ({"pixel_values": pixels, "image_index": index}, {"pixel_values": pixels[index]})
        ]
        assert torch.equal(*answers)


def test_methods_say_that_they_read_the_prompt() -> None:
    """Who does not say so gets along without one."""
    keys = torch.randn(1, 17, 8)
    reading = set()
    for name, cls in discover().items():
        if not issubclass(cls, VisionReducer):
            continue
        try:
            reducer = build_reducer({"name": name})
        except ReductionError:  # needs settings
            reducer = build_reducer({"name": name, "budget": 4})
        side = reducer.input_size(28, 28, 7)[0] // 7
        features = torch.randn(1, side * side, 8)
        tokens = VisionTokens(
            features,
            (side, side),
            lambda own=False, size=side * side: (keys[:, :1], keys[:, : size + 1]),
            2,
            ids=torch.zeros(1, dtype=torch.long),
        )
        try:
            reducer(tokens)
        except ReductionError as error:
            assert "prompt" in str(error), f"{name}: {error}"
            reading.add(name)
        assert reducer.reads_prompt == (name in reading), name
    assert reading >= {"trsm", "par"}


def test_a_step_is_laid_out_as_by_the_long_way() -> None:
    model = tiny_model({"vision": {"name": "prumerge", "iqr_factor": 0.2}})
    given, pixels = batch()
    with torch.no_grad():
        output = model(**given, pixel_values=pixels[[2, 0, 2, 1]], use_cache=True)
    cache = output.past_key_values
    mask = torch.cat([given["attention_mask"], torch.tensor([[1], [0], [1]])], dim=1)
    for attention in (mask, None):
        ours = step_layout(cache.next_position, attention)
        real = torch.ones(3, 1, dtype=torch.bool) if attention is None else attention[:, -1:].bool()
        theirs = ForwardPass().begin(real, cache.next_position[:, None])
        for name in ("is_image", "key_mask", "position_ids", "origin"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    ahead = step_layout(cache.next_position, mask).next_position()
    assert ahead.tolist() == (cache.next_position + torch.tensor([1, 0, 1])).tolist()
