"""The language corpus: what is said of a scene is true, and heaps hold what they should."""

from __future__ import annotations

import random
import re

import pytest
import torch

import playground.pocket  # noqa: F401  before transformers: see its first lines
from playground.pocket import tokenizer as pocket_tokenizer
from playground.pocket.encoding import collate, embed, encode
from playground.pocket.language import Segment, document, heap, restate
from playground.pocket.questions import PLURALS
from playground.pocket.scenes import Scene, scenes
from playground.pocket.train_lm import LanguageSettings, build_model

SINGULARS = {plural: shape for shape, plural in PLURALS.items()}


def holds(scene: Scene, sentence: str) -> bool | None:
    """Whether a counting or comparing sentence is true of a scene, found by another route; None for any other sentence."""
    if found := re.fullmatch(r"the number of shapes plus (\d) is (\d)\.", sentence):
        return len(scene.objects) + int(found[1]) == int(found[2])
    if found := re.fullmatch(r"the number of (\w+) is (\d)\.", sentence):
        shape = SINGULARS.get(found[1])
        return sum(shape in (None, item.shape) for item in scene.objects) == int(found[2])
    if found := re.fullmatch(r"the number of (\w+) shapes is (\d)\.", sentence):
        return sum(item.colour == found[1] for item in scene.objects) == int(found[2])
    found = re.fullmatch(r"from the ([\w ]+) the ([\w ]+) is (?:to the )?(left|right|above|below)\.", sentence)
    if not found:
        return None
    origin, other = (
        next(item for item in scene.objects if name in (item.name, item.shape)) for name in found.groups()[:2]
    )
    return {
        "left": other.col < origin.col,
        "right": other.col > origin.col,
        "above": other.row < origin.row,
        "below": other.row > origin.row,
    }[found[3]]


def test_counts_sums_and_relations_are_true() -> None:
    rng = random.Random(0)
    seen = {True: 0, None: 0}
    for scene in scenes("train", 3, 200):
        for start, end in restate(scene, rng, 10):
            verdict = holds(scene, f"{start} {end}")
            assert verdict is not False, (start, end, scene.key)
            seen[verdict] += 1
    assert seen[True] > 300 and seen[None] > 300


def test_every_item_has_a_heap_with_all_its_words() -> None:
    rng = random.Random(1)
    for scene in scenes("train", 4, 50):
        heaps = heap(scene, rng)
        for item in scene.objects:
            assert f"{item.colour} {item.shape} {item.place}" in heaps


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_a_heap_is_the_mean_of_its_words_and_blur_adds_noise_of_that_size(blur: float) -> None:
    tokenizer = pocket_tokenizer.build()
    model = build_model(LanguageSettings(width=64, layers=1, intermediate=64), tokenizer)
    told = Segment("", 0.0, ("red star center", "", "blue ring top left"), blur)
    ids, weights, heaps = collate(encode([[told, Segment("\nhow", 1.0)]], tokenizer), tokenizer.pad_token_id)
    table = model.get_input_embeddings().weight
    words = tokenizer.convert_tokens_to_ids(["▁red", "▁star", "▁center"])
    clean = embed(model, ids, heaps)[0]
    torch.testing.assert_close(clean[1], table[words].mean(0))
    assert clean[2].abs().max() == 0 and weights[0, :4].sum() == 0
    noisy = embed(model, ids, heaps, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(noisy[4:], clean[4:])  # text is never blurred
    added = (noisy - clean)[1:4].norm(dim=-1)
    length = table[pocket_tokenizer.FIRST_WORD :].norm(dim=-1).mean().detach()
    torch.testing.assert_close(added / length, torch.full((3,), blur), atol=0.3, rtol=0)


def test_a_document_weighs_answers_and_little_else() -> None:
    rng = random.Random(2)
    for _ in range(30):
        segments = document(rng, scenes("train", 5), formal=0.5, heaped=0.5)
        assert any(segment.weight == 1.0 for segment in segments)
        assert all(segment.weight in (0.0, 0.05, 1.0) for segment in segments)
