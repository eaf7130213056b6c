"""What the tower made of an image is read again to the bit, and the tower is not asked twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import pixels, rows_of, sample_rows, tiny_model
from torch import Tensor, nn

from llava_prumerge.model import tower_cache
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.tower_cache import TowerCache, keep_tower_states
from llava_prumerge.model.vision_tower import blocks_of, encode, inner_tower

DINO = dict(
    model_type="dinov2", hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
)
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    | dict(num_attention_heads=4, image_size=28, patch_size=7),
    "dinov2": DINO,
    "dinov2_with_registers": DINO | dict(model_type="dinov2_with_registers", num_register_tokens=2),
}
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "next block": {"vision": {"name": "prumerge", "budget": 5}},
    "own block": {"vision": {"name": "visionzip", "budget": 5}},
    "an earlier block": {"vision": {"name": "vscan", "budget": 5}},
    "decoder": {"decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.25}},
}


def model_of(tower: str, reduction: dict[str, Any] | None) -> nn.Module:
    changes: dict[str, Any] = {}
    if tower != "clip":
        changes = {"vision_config": TOWERS[tower]}
    if tower == "siglip":
        changes["vision_feature_select_strategy"] = "full"
    if tower == "dinov2_with_registers":
        changes["image_seq_length"] = 18
    if tower == "clip":
        return tiny_model(reduction)
    from tiny_llava import tiny_config

    from llava_prumerge.model.configuration import PruMergeLlavaConfig
    from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration

    torch.manual_seed(0)
    config = tiny_config(reduction, PruMergeLlavaConfig, **changes)
    return PruMergeLlavaForConditionalGeneration(config).eval()


def batch(model: nn.Module) -> dict[str, Tensor]:
    places = model.config.image_seq_length
    rows = [[token for token in row if token != 99] for row in sample_rows()]
    images = [1, 1, 0, 2]
    ids = [[row[0], *[99] * places * count, *row[1:]] for row, count in zip(rows, images, strict=True)]
    return rows_of(*ids) | {"pixel_values": pixels(4)}


@contextmanager
def counted(tower: nn.Module) -> Iterator[list[int]]:
    """Images that a tower's embeddings have seen, call by call."""
    seen: list[int] = []
    handle = inner_tower(tower).embeddings.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("clip", method) for method in METHODS),
        *(("dinov2", method) for method in ("none", "next block", "an earlier block")),
        *(("siglip", method) for method in ("none", "own block")),
        *(("dinov2_with_registers", method) for method in ("none", "next block")),
    ],
)
def test_equal_to_the_bit_and_the_tower_runs_once(kind: str, method: str, tmp_path: Path) -> None:
    model = model_of(kind, METHODS[method])
    inputs = batch(model)
    expected = model(**inputs).logits
    keep_tower_states(model, tmp_path / "cache")
    with counted(model.model.vision_tower) as seen:
        assert torch.equal(model(**inputs).logits, expected)
        assert seen == [4]
        assert torch.equal(model(**inputs).logits, expected)
        assert seen == [4], "the second pass reads"
        other = model_of(kind, METHODS[method])  # another process, after the model was loaded again
        keep_tower_states(other, tmp_path / "cache")
        with counted(other.model.vision_tower) as again:
            assert torch.equal(other(**inputs).logits, expected)
        assert again == []


@torch.no_grad()
@pytest.mark.parametrize("kind", TOWERS)
def test_a_loop_over_the_blocks_is_the_tower(kind: str) -> None:
    model = model_of(kind, METHODS["next block"])
    tower, images = model.model.vision_tower, pixels(3)
    states = tower(images, output_hidden_states=True, return_dict=True).hidden_states
    for depth in range(len(blocks_of(tower)) + 1):
        tiles = encode(tower, images, depth)
        whole = tiles.features if tiles.prefix is None else torch.cat([tiles.prefix, tiles.features], dim=1)
        assert torch.equal(whole, states[depth])


@torch.no_grad()
def test_only_what_is_new_goes_through_the_tower(tmp_path: Path) -> None:
    model = tiny_model(METHODS["own block"])
    keep_tower_states(model, tmp_path)
    tower, images = model.model.vision_tower, pixels(5)
    with counted(tower) as seen:
        for rows in ([0, 1], [1, 2, 0, 3], [3, 3, 4], [4, 0]):
            tiles = encode(tower, images[rows])
            plain = encode(tiny_model().model.vision_tower, images[rows])
            torch.testing.assert_close(tiles.features, plain.features, atol=1e-6, rtol=1e-6)
            for given, wanted in zip(tiles.projections(own=True), plain.projections(own=True), strict=True):
                torch.testing.assert_close(given, wanted, atol=1e-6, rtol=1e-6)
    assert seen == [2, 2, 1]


@torch.no_grad()
@pytest.mark.parametrize("change", ["pixels", "weights", "weights in memory", "precision", "attention"])
def test_other_pixels_weights_or_arithmetic_are_not_taken_for_these(change: str, tmp_path: Path) -> None:
    model, images = tiny_model(), pixels(2)
    keep_tower_states(model, tmp_path)
    encode(model.model.vision_tower, images)
    if change == "pixels":
        images[1, 2, 27, 27] += 1e-6
    elif change == "weights":
        model = tiny_model()
        model.model.vision_tower.encoder.layers[0].mlp.fc1.bias[3] += 1e-6
        keep_tower_states(model, tmp_path)
    elif change == "weights in memory":
        model.model.vision_tower.encoder.layers[0].mlp.fc1.bias[3] += 1e-6
    elif change == "precision":
        model.to(torch.bfloat16)
    else:
        model.set_attn_implementation("eager")
    tower = model.model.vision_tower
    with counted(tower) as seen:
        features = encode(tower, images).features
    assert seen == [1 if change == "pixels" else 2]
    del tower.cache
    assert torch.equal(features, encode(tower, images).features)


@torch.no_grad()
@pytest.mark.parametrize("torn", [b"", b"\x08\x00"])
def test_a_torn_file_is_made_again(torn: bytes, tmp_path: Path) -> None:
    model, images = tiny_model(), pixels(2)
    keep_tower_states(model, tmp_path)
    expected = encode(model.model.vision_tower, images).features
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    whole = file.read_bytes()
    file.write_bytes(torn)
    with counted(model.model.vision_tower) as seen:
        assert torch.equal(encode(model.model.vision_tower, images).features, expected)
    assert seen == [1] and file.read_bytes() == whole


@torch.no_grad()
def test_a_full_folder_takes_no_more_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others have written counts, too."""
    monkeypatch.setattr(tower_cache, "_RECOUNT", 1)
    tower, images = tiny_model().model.vision_tower, pixels(5)
    one = 17 * 32 * 4 + 100
    (tmp_path / "others").write_bytes(bytes(2 * one))
    tower.cache = TowerCache(tmp_path, 4 * one)
    expected = encode(tower, images).features
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert torch.equal(encode(tower, images).features, expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"tower_cache={tmp_path} holds its 9.104e-06 GB (tower_cache_gb); further images go through the tower each time"
    ]
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "unfinished" in name]


def test_a_tower_in_training_is_run(tmp_path: Path) -> None:
    model = tiny_model()
    keep_tower_states(model, tmp_path)
    tower, images = model.model.vision_tower, pixels(2)
    for _ in range(2):
        with counted(tower) as seen:
            assert encode(tower, images).features.requires_grad
        assert seen == [2]
    tower.requires_grad_(False)
    encode(tower, images)
    with counted(tower) as seen:
        assert not encode(tower, images).features.requires_grad
    assert seen == []


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    model = tiny_model({"vision": {"name": "flowcut", "budget": 5}})
    with pytest.raises(ModelError, match="^tower_cache=.*: flowcut cuts inside the vision tower"):
        keep_tower_states(model, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file: is no folder that tower_cache can use: File exists"):
        keep_tower_states(tiny_model(), tmp_path / "file")
    several = tiny_model(vision_feature_layer=[-1, -2])
    with pytest.raises(ModelError, match=r"serves features of one layer, and vision_feature_layer is \[-1, -2\]"):
        keep_tower_states(several, tmp_path)
