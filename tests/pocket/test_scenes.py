"""The pocket world's scenes: disjoint splits, the same scenes for the same seed, pixels that follow the description."""

from __future__ import annotations

import itertools
import random

import pytest

from playground.pocket.scenes import (
    CELL,
    COLOURS,
    SHAPES,
    SPLITS,
    WORDS,
    Object,
    Scene,
    Word,
    caption,
    place_name,
    render,
    sample_scene,
    scenes,
    split_of,
)


def test_splits_are_disjoint_and_stable() -> None:
    drawn = {split: {scene.key for scene in scenes(split, seed=1, n=400)} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not drawn[a] & drawn[b]
    again = {scene.key for scene in scenes("test", seed=1, n=400)}
    assert again == drawn["test"]
    assert {scene.key for scene in scenes("test", seed=2, n=400)} != drawn["test"]


def test_split_ignores_the_order_of_items() -> None:
    a, b = Object("star", "red", 0, 0), Object("ring", "blue", 2, 1)
    assert Scene((a, b)) == Scene((b, a))
    assert split_of(Scene((a, b), (Word("CAT", 1, 1),))) == split_of(Scene((b, a), (Word("CAT", 1, 1),)))


def test_constraints_hold() -> None:
    for scene in scenes("train", 3, 100, objects=(2, 3), words=(1, 1), unique=True):
        assert 2 <= len(scene.objects) <= 3 and len(scene.words) == 1
    with pytest.raises(ValueError, match="'dev' is not one of"):
        next(scenes("dev", 0))
    with pytest.raises(ValueError, match="one item per cell"):
        Scene((Object("star", "red", 0, 0), Object("ring", "red", 0, 0)))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_its_cell_and_colour(shape: str) -> None:
    for colour, row, col in (("red", 0, 0), ("blue", 1, 2), ("brown", 2, 1)):
        image = render(Scene((Object(shape, colour, row, col),)), seed=0).convert("RGB")
        near = [
            (x, y)
            for x, y in itertools.product(range(image.width), range(image.height))
            if max(abs(a - b) for a, b in zip(image.getpixel((x, y)), COLOURS[colour], strict=True)) < 30
        ]
        assert len(near) > 100
        assert {(y // CELL, x // CELL) for x, y in near} == {(row, col)}


def test_shapes_and_words_look_different_from_each_other() -> None:
    pictures = {shape: render(Scene((Object(shape, "red", 1, 1),)), 0).tobytes() for shape in SHAPES}
    pictures |= {word: render(Scene((), (Word(word, 1, 1),)), 0).tobytes() for word in WORDS}
    assert len(set(pictures.values())) == len(SHAPES) + len(WORDS)


def test_render_is_deterministic_and_seeded() -> None:
    scene = sample_scene(random.Random(0))
    assert render(scene, 1).tobytes() == render(scene, 1).tobytes() != render(scene, 2).tobytes()


def test_captions_name_everything() -> None:
    rng = random.Random(0)
    for scene in scenes("validation", 0, 50):
        for text in (caption(scene), caption(scene, rng)):
            for item in scene.objects:
                assert item.name in text and place_name(item.row, item.col) in text
            assert all(word.text in text for word in scene.words)
