"""Every family, tiny: without a method it is stock, keeping all is stock, and every method runs or says in one line why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, IMG, TYPE_OF_IMAGES, VID, internvl, noise, shuffled, stock_model
from transformers import AutoModelForImageTextToText

from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.methods.registry import discover, method_names
from llava_prumerge.model.attach import attach
from llava_prumerge.model.families import family_of, family_types

MADE: dict[str, tuple[Any, dict[str, Any], torch.Tensor]] = {}


def served(name: str) -> None:
    """Skip where this release of transformers is too old for a family."""
    try:
        family_of(name)
    except ValueError as error:
        if "needs transformers" not in str(error):
            raise
        pytest.skip(str(error))


@torch.no_grad()
def made(name: str) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """A stock model, a batch for it (an image with text, text alone, padded on the left), and its logits."""
    if name not in MADE:
        served(name)
        model, (_, inputs) = stock_model(name), FAMILIES[name]()
        count = sum(len(one) for one in model.model.get_image_features(**inputs, return_dict=True).pooler_output)
        row = [1, 5, 6, *[IMG] * count, 7, 8, 9]
        ids = torch.tensor([row, [0] * (len(row) - 6) + [1, 11, 12, 13, 14, 15]])
        mask = (ids != 0).long()
        batch = dict(input_ids=ids, attention_mask=mask, **inputs)
        if name.startswith("qwen"):
            batch["mm_token_type_ids"] = (ids == IMG).long()
        if name in TYPE_OF_IMAGES:
            batch["token_type_ids"] = (ids == IMG).long() * TYPE_OF_IMAGES[name]
        MADE[name] = model, batch, model(**batch).logits
    return MADE[name]


every = pytest.mark.parametrize("name", FAMILIES)


def test_every_family_is_here() -> None:
    assert sorted(FAMILIES) == family_types()


@every
@torch.no_grad()
def test_without_a_method_it_is_stock_and_keeping_all_gives_stock_logits(name: str) -> None:
    model, batch, expected = made(name)
    assert torch.equal(attach(model)(**batch).logits, expected)
    kept = attach(model, {"vision": {"name": "uniform", "sample": "first", "budget": 4096}})(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(kept[real], expected[real], atol=1e-4, rtol=1e-4)
    text = attach(model, {"vision": {"name": "uniform", "budget": 3}})(**batch).logits[1, -6:]
    torch.testing.assert_close(text, expected[1, -6:], atol=1e-4, rtol=1e-4)


def asked_of_families() -> dict[tuple[Any, ...], str]:
    """Everything that a family has to give a reducer, and one reducer for each set of demands."""
    found: dict[tuple[Any, ...], str] = {}
    for name in method_names(VisionReducer):
        found.setdefault(demands(name), name)
    return found


def demands(name: str) -> tuple[Any, ...]:
    """What a reducer asks of a family: from here on a family treats those alike that ask for the same."""
    reducer = discover()[name]
    has_earlier, resizes = reducer.earlier is not VisionReducer.earlier, reducer.input_size
    return reducer.site, reducer.reads_prompt, reducer.reads_projected, reducer.needs_ids, has_earlier, resizes


@every
@torch.no_grad()
@pytest.mark.parametrize("method", [*method_names(VisionReducer), *method_names(DecoderPruner)])
def test_every_method_runs_or_says_why_not(name: str, method: str) -> None:
    model, batch, expected = made(name)
    site = "vision" if issubclass(discover()[method], VisionReducer) else "decoder"
    block = {"name": method} | ({"budget": 4} if site == "vision" and method != "none" else {})
    try:
        logits = attach(model, {site: block})(**batch).logits
        if site == "decoder" or method in asked_of_families().values():
            ids = model.generate(**batch, max_new_tokens=2, do_sample=False)
            assert ids.shape[0] == 2
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and method in str(error), f"{error!r} names no method in one line"
        return
    finally:
        attach(model)
    assert logits.isfinite().all()
    assert logits.shape[1] < expected.shape[1] or method in ("none", "atp_llava")


RESTORE = {"positions": "original", "anchors": "1/2", "proportional": True, "calibration": 2.0}


@every
@torch.no_grad()
def test_restore_acts_and_its_cached_decoding_is_the_uncached_one(name: str) -> None:
    """In every family: what weighs keys and calibrates distances is kept beside the keys that decoding goes on with."""
    model, batch, _ = made(name)
    base = {"name": "uniform", "budget": 4}
    wanted = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, suppress_tokens=[IMG, VID])
    told = dict(output_logits=True, return_dict_in_generate=True)
    try:
        plain = attach(model, {"vision": base})(**batch).logits
        attach(model, {"vision": base | RESTORE})
        cached, whole = (model.generate(**batch, **wanted, **told, use_cache=cache) for cache in (True, False))
        restored = model(**batch).logits
    finally:
        attach(model)
    assert restored.shape == plain.shape and not torch.allclose(restored[0, -1], plain[0, -1], atol=1e-3)
    torch.testing.assert_close(restored[1, -1], plain[1, -1], atol=1e-4, rtol=1e-4)  # text alone has nothing to restore
    assert torch.equal(cached.sequences, whole.sequences)
    for one, other in zip(cached.logits, whole.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def logits_without(model: Any, batch: dict[str, torch.Tensor], gone: torch.Tensor) -> torch.Tensor:
    """Of the stock model, the keys of the places `gone` [B, L] hidden in each layer's own mask."""
    inner = getattr(model.model, "language_model", None) or model.model.text_model

    def hide(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
        mask, length = kwargs["attention_mask"], gone.shape[1]
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        off = gone[:, None, None]
        hidden = mask & ~off if mask.dtype == torch.bool else mask.masked_fill(off, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": hidden}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in inner.layers]
    logits = model(**batch).logits
    for hook in hooks:
        hook.remove()
    return logits


IN_A_ROW = [name for name in FAMILIES if not name.startswith(("llava_next", "llava_onevision"))]
"""Families whose placeholders are the units of one tile after the other."""


@pytest.mark.parametrize("name", IN_A_ROW)
@torch.no_grad()
def test_dropping_is_masking_in_the_stock_model(name: str) -> None:
    """The first three units of each tile stay at their places: windows, blocks and rotary positions stay as well."""
    model, batch, _ = made(name)
    spots = batch["input_ids"] == IMG
    tiles = 2 if batch["pixel_values"].dim() == 5 else 1
    gone = torch.zeros_like(spots)
    gone[0, spots[0].nonzero()[:, 0]] = torch.arange(int(spots[0].sum()) // tiles).repeat(tiles) >= 3
    attach(model)
    expected = logits_without(model, batch, gone)
    attach(model, {"vision": {"name": "uniform", "sample": "first", "budget": 3, "positions": "original"}})
    logits = model(**batch).logits
    cached, uncached = (model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=c) for c in (True, False))
    attach(model)
    real = batch["attention_mask"].bool() & ~gone
    assert logits.shape[1] == int(real.sum(dim=1).max()) < spots.shape[1]
    for row, kept in enumerate(real):
        torch.testing.assert_close(logits[row, -int(kept.sum()) :], expected[row][kept], atol=1e-4, rtol=1e-4)
    if name != "paligemma":  # without a cache stock lets the prompt see what has been said
        assert torch.equal(cached, uncached)


def frames_of_video_llava() -> tuple[Any, dict[str, Any]]:
    config, _ = FAMILIES["video_llava"]()
    return config, dict(pixel_values_videos=noise(2, 3, 3, 32, 32))


def tiles_of_internvl() -> tuple[Any, dict[str, Any]]:
    config, _ = internvl()
    return config, dict(pixel_values=noise(4, 3, 64, 64))


def two_images_in_tiles() -> tuple[Any, dict[str, Any]]:
    """Idefics 3's, where words stand before each tile, and one and the same before the last of each image."""
    config, _ = shuffled("idefics3")
    return config, dict(pixel_values=noise(1, 5, 3, 64, 64))


@pytest.mark.parametrize(
    ("make", "token", "places", "tiles"),
    [
        (tiles_of_internvl, IMG, [48, 16], [3, 1]),
        (frames_of_video_llava, VID, [51, 51], [3, 3]),
        (FAMILIES["llava_next"], IMG, [16 + 8 * 9], [5]),
        (FAMILIES["llava_onevision"], IMG, [16 + 8 * 9], [5]),
        (FAMILIES["qwen2_5_vl"], IMG, [16], [1]),
        (FAMILIES["mistral3"], IMG, [12], [1]),
        (FAMILIES["idefics3"], IMG, [32], [2]),
        (two_images_in_tiles, IMG, [48, 32], [3, 2]),
    ],
)
@torch.no_grad()
def test_statistics_count_images_of_the_user_and_tiles_or_frames(
    make: Any, token: int, places: list[int], tiles: list[int]
) -> None:
    """Each image is a run of placeholders; with a budget of 2 each tile keeps 2, and what is no patch stays."""
    config, inputs = make()
    served(config.model_type)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    if make is two_images_in_tiles:
        parts = [[10 + tile if tile < many - 1 else 9, *[token] * 16] for many in tiles for tile in range(many)]
    else:
        parts = [[*[token] * count, 5, 6] for count in places]
    ids = torch.tensor([[1, *[one for part in parts for one in part], 7]])
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    if "image_grid_thw" in inputs:
        batch["mm_token_type_ids"] = (ids == token).long()
    number = len(places)
    special = {51: 3, 16 + 8 * 9: 8}.get(places[0], 0)  # a class token for each frame, a line break for each row
    for block, kept in (
        (None, places),
        ({"vision": {"name": "uniform", "budget": 2}}, [2 * t + special for t in tiles]),
    ):
        attach(model, block)
        for run in (lambda: model(**batch), lambda: model.generate(**batch, max_new_tokens=1)):
            run()
            told = model.reduction_stats()
            assert (told["images"], told["tiles"]) == (number, sum(tiles))
            assert told["kept_mean"] == pytest.approx(sum(kept) / number)
            assert told["kept_per_tile"] == pytest.approx(sum(kept) / sum(tiles))
            assert (told["kept_min"], told["kept_max"]) == (min(kept), max(kept))


@every
def test_a_method_that_resizes_images_is_refused_where_nobody_resizes_them(name: str) -> None:
    """Also without a budget, when it would keep all and say nothing."""
    model, batch, expected = made(name)
    if name == "llava":
        assert attach(model, {"vision": {"name": "downsample"}})(**batch).logits.shape[1] < expected.shape[1]
    else:
        with pytest.raises(ValueError, match=f"downsample resizes the image, and of {name} models"):
            attach(model, {"vision": {"name": "downsample"}})
    assert torch.equal(attach(model)(**batch).logits, expected)


@torch.no_grad()
def test_what_is_refused_leaves_a_stock_model_as_it_was() -> None:
    model, (_, inputs) = stock_model("internvl"), FAMILIES["internvl"]()
    ids = torch.tensor([[1, 5, *[IMG] * 16, 7]])
    kind, settings = type(model), model.config.to_dict()
    for block in ({"vision": {"name": "downsample"}}, {"decoder": {"name": "fastv", "layer": 99}}):
        with pytest.raises(ValueError, match="downsample|fastv"):
            attach(model, block)
        assert type(model) is kind and model.config.to_dict() == settings
        assert model(input_ids=ids, **inputs).logits.shape[1] == 19
    attach(model, {"vision": {"name": "uniform", "budget": 2}})
    with pytest.raises(ValueError, match="downsample"):
        attach(model, {"vision": {"name": "downsample"}})
    assert model.config.reduction["vision"]["name"] == "uniform"
    assert model(input_ids=ids, **inputs).logits.shape[1] == 5
