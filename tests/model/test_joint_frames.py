"""PruMerge on videos: each frame by itself, or a video's frames together, against the method run on the same arrays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, VID, noise, stock_model
from torch import Tensor
from transformers import AutoModelForImageTextToText

from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.attach import attach
from llava_prumerge.model.vision_tower import encode

T, UNITS, PLACES = 4, 64, 65
VISION = dict(
    model_type="prumerge_temporal_clip", num_frames=T, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, image_size=32, patch_size=4, projection_dim=32,
)  # fmt: skip
METHODS = [
    dict(name="prumerge"),
    dict(name="prumerge_plus"),
    dict(name="prumerge", budget=24),
    dict(name="prumerge_plus", budget=24),
    dict(name="prumerge_plus", ratio=0.125, extra=False),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda one: ",".join(map(str, one.values())))


@pytest.fixture(scope="module")
def model() -> Any:
    """A Video-LLaVA with attention over time, lively: frames have outliers, and differ in how many."""
    config, _ = FAMILIES["video_llava"]()
    from llava_prumerge.model.configuration import with_reduction

    config = with_reduction(config, None)
    config = type(config)(**{**config.to_dict(), "vision_config": VISION})
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return made


def videos() -> Tensor:
    """Two, whose frames are unlike each other. [2, T, 3, h, w]"""
    return noise(2, T, 3, 32, 32) * torch.tensor([0.3, 1.0, 2.0, 0.6]).view(1, T, 1, 1, 1)


def seen(model: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the tower: features [2T, P, C], class tokens [2T, C], class attention of one head [2T, P], keys [2T, P, C]."""
    tiles = encode(model.model.video_tower, videos().flatten(0, 1))
    queries, keys = tiles.projections()
    logits = queries[:, 0, None] @ keys.transpose(1, 2) * keys.shape[2] ** -0.5
    return tiles.features, tiles.prefix[:, 0], logits[:, 0].softmax(-1)[:, 1:], keys[:, 1:]


def alone(method: dict[str, Any], features: Tensor, attention: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The method on one image. [P, C], [P], [P, C] -> features [K, C] and patches [K]"""
    image = VisionTokens(
        features[None], (len(features) // 8, 8), lambda: (keys, keys)
    )  # not asked: what it makes is there
    image._blocks[False] = SimpleNamespace(received=lambda heads: attention[None], patch_keys=keys[None], attention={})
    made, valid, origin = build_reducer(method).directly(image)
    return made[valid], origin[valid]


def left(model: Any, method: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], Any]:
    """Of each video the tokens at its last places [K, D], and the places they stand for."""
    attach(model, {"vision": method})
    output = model.model.get_video_features(videos(), return_dict=True)
    told = output.visual_tokens
    pooled = output.pooler_output.flatten(0, 1).split(told.lengths)
    sources = [source[source >= 0] for source in told.source.split(told.lengths)]
    return [part[-len(source) :] for part, source in zip(pooled, sources, strict=True)], sources, told


def expected(model: Any, tokens: Tensor, places: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and class tokens of one video behind the projector, by place; the extra one stands at its last unit."""
    places = torch.cat([places, torch.arange(T) * PLACES])
    order = places.argsort(stable=True)
    return model.model.project(torch.cat([tokens, classes])[None])[0][order], places[order]


@every_method
@torch.no_grad()
def test_each_frame_is_as_if_it_were_alone(model: Any, method: dict[str, Any]) -> None:
    features, classes, attention, keys = seen(model)
    tokens, sources, told = left(model, method)
    assert told.tiles == 2 * T and told.kept.tolist() == [len(one) for one in sources]
    for video in range(2):
        begin, wanted = 0, [[], []]
        for frame in range(video * T, video * T + T):
            made, origin = alone(method, features[frame], attention[frame], keys[frame])
            wanted[0] += [classes[frame][None], made]
            wanted[1] += [torch.tensor([begin]), begin + 1 + torch.where(origin < 0, UNITS - 1, origin)]
            begin += PLACES
        torch.testing.assert_close(
            tokens[video], model.model.project(torch.cat(wanted[0])[None])[0], atol=1e-5, rtol=1e-5
        )
        assert torch.equal(sources[video], torch.cat(wanted[1]))
    assert all(len(one) < T * PLACES for one in sources)


@every_method
@torch.no_grad()
def test_joint_is_the_method_on_the_frames_laid_end_to_end(model: Any, method: dict[str, Any]) -> None:
    """And class tokens stay, what is left is in the order of time, and the choice is not that frame by frame."""
    features, classes, attention, keys = seen(model)
    tokens, sources, told = left(model, method | {"frames": "joint"})
    assert told.tiles == 2 * T and int(told.origin.max()) < UNITS
    for video, part in enumerate((slice(0, T), slice(T, 2 * T))):
        made, origin = alone(method, features[part].flatten(0, 1), attention[part].flatten(), keys[part].flatten(0, 1))
        unit = torch.where(origin < 0, T * UNITS - 1, origin)
        places = unit // UNITS * PLACES + 1 + unit % UNITS
        wanted, order = expected(model, made, places, classes[part])
        torch.testing.assert_close(tokens[video], wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(sources[video], order) and len(order) < T * PLACES
    apart = left(model, method)[1]
    assert not all(torch.equal(one, other) for one, other in zip(sources, apart, strict=True))


@torch.no_grad()
def test_statistics_tell_of_videos_and_of_frames(model: Any) -> None:
    """A budget is that of a frame, or of a video; the class token of each frame stays beside it."""
    ids = torch.tensor([[1, *[VID] * (T * PLACES), 5, *[VID] * (T * PLACES), 6, 7]])
    for frames, kept in (("each", T * 9), ("joint", 8 + T)):
        attach(model, {"vision": dict(name="prumerge", budget=8, frames=frames)})
        output = model(input_ids=ids, pixel_values_videos=videos())
        assert output.logits.shape[1] == ids.shape[1] - 2 * (T * PLACES - kept)
        told = model.reduction_stats()
        assert (told["images"], told["tiles"], told["full_mean"]) == (2, 2 * T, T * PLACES)
        assert (told["kept_mean"], told["kept_min"], told["kept_per_tile"]) == (kept, kept, kept / T)
        given = dict(input_ids=ids, pixel_values_videos=videos(), max_new_tokens=3, do_sample=False)
        assert torch.equal(*(model.generate(**given, use_cache=cache) for cache in (True, False)))


@torch.no_grad()
def test_frames_that_are_pooled_can_be_joined_too() -> None:
    """LLaVA-NeXT-Video: 2 x 2 patches are one unit, and class tokens are no tokens."""
    model = stock_model("llava_next_video")
    shown = noise(2, 3, 3, 32, 32)
    for frames in ("each", "joint"):
        attach(model, {"vision": dict(name="prumerge", budget=3, frames=frames)})
        told = model.model.get_video_features(shown, return_dict=True).visual_tokens
        kept = [source[source >= 0] for source in told.source.split(told.lengths)]
        assert [len(one) for one in kept] == [3 if frames == "joint" else 9] * 2 and told.tiles == 6
        if frames == "joint":
            assert all(torch.equal(one, one.sort().values) for one in kept)


@torch.no_grad()
def test_where_it_cannot_be_it_is_refused() -> None:
    llava = stock_model("llava")
    with pytest.raises(InputError, match="prumerge with frames=joint: no frames of llava models are reduced together"):
        attach(llava, {"vision": dict(name="prumerge", frames="joint")})
    with pytest.raises(InputError, match="frames"):
        attach(stock_model("video_llava"), {"vision": dict(name="pool", frames="joint")})
    with pytest.raises(InputError, match="frames"):
        attach(llava, {"vision": dict(name="prumerge", frames="all")})
