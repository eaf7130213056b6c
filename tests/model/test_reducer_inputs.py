"""What the model gives a reducer that asks for more: earlier blocks, both sides of the projector, the whole view."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, IMG, stock_model
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, sample_rows, tiny_model

from llava_prumerge.methods.base import Earlier, VisionTokens
from llava_prumerge.model.attach import attach, detach
from llava_prumerge.model.host import overviews


def seen(model: Any, run: Any) -> list[VisionTokens]:
    """What the model's reducer was given while something ran."""
    given: list[VisionTokens] = []
    reducer = model.model.reducer
    plain = reducer.forward
    reducer.forward = lambda image: given.append(image) or plain(image)
    try:
        run()
    finally:
        del reducer.forward
    return given


@torch.no_grad()
def test_an_earlier_block_is_the_towers() -> None:
    model = tiny_model({"vision": {"name": "hired", "budget": 5}}, attn="eager")
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    attentions = tower(pixel_values=pixels(3), output_attentions=True).attentions
    (image,) = seen(model, lambda: model(**rows_of(*sample_rows()), pixel_values=pixels(4)))
    expected = attentions[0][:, :, 0, 1:].mean(dim=1)
    first = image.attention(per_head=True, own=Earlier(Fraction(0)))[:3]
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(first, image.attention(per_head=True, own=True)[:3], atol=1e-3)
    with pytest.raises(ValueError, match="the tower kept no inputs of the block at 1/3 of its way"):
        image.attention(own=Earlier(Fraction(1, 3)))


def test_a_tower_keeps_what_the_method_asks_about_and_no_more() -> None:
    model = tiny_model({"vision": {"name": "vscan", "budget": 5}})
    tower = model.model.vision_tower
    assert tower.kept_blocks == (Earlier(Fraction(5, 22)),)
    attach(model, {"vision": {"name": "scope", "budget": 5}})
    assert tower.kept_blocks == ()
    detach(model)
    assert not hasattr(tower, "kept_blocks")


@pytest.mark.parametrize("part, own, index", [("5/22", 22, 5), ("5/22", 10, 2), ("0", 22, 0), ("1", 22, 22)])
def test_a_block_by_its_part_of_the_way(part: str, own: int, index: int) -> None:
    assert Earlier(Fraction(part)).index(own) == index


@pytest.mark.parametrize("name, early", [("mmtok", True), ("trim", False)])
@torch.no_grad()
def test_both_sides_of_the_projector(name: str, early: bool) -> None:
    model = tiny_model({"vision": {"name": name, "budget": 5}})
    (image,) = seen(model, lambda: model(**rows_of(*sample_rows()), pixel_values=pixels(4)))
    behind = image.features if early else image.projected
    before = image.unprojected if early else image.features
    assert not torch.equal(before, behind)
    torch.testing.assert_close(model.model.project(before), behind)
    assert torch.equal(image.before_projector, before) and image.matched("llm")[0] is behind


@torch.no_grad()
def test_the_view_of_the_whole_comes_first_where_an_image_is_cut() -> None:
    model, inputs = stock_model("llava_next"), FAMILIES["llava_next"]()[1]
    count = sum(len(one) for one in model.model.get_image_features(**inputs, return_dict=True).pooler_output)
    ids = torch.tensor([[1, 5, *[IMG] * count, 7, 8]])
    attach(model, {"vision": {"name": "hired", "budget": 3}})
    (image,) = seen(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs))
    tiles = len(image.features)
    assert tiles > 1 and image.overview.tolist() == [0] * tiles
    assert model.reduction_stats()["kept_per_tile"] * tiles >= 3 * tiles


def test_overviews() -> None:
    features, owners = torch.zeros(1), torch.tensor([0, 0, 0, 1, 2, 2])
    assert overviews(owners, "first", features).tolist() == [0, 0, 0, 3, 4, 4]
    assert overviews(owners, "last", features).tolist() == [2, 2, 2, 3, 5, 5]
    assert overviews(torch.arange(4), "first", features) is None and overviews(owners, None, features) is None


@torch.no_grad()
def test_tiles_show_parts_of_the_view() -> None:
    """A map of tiles is padded to its shape: all of the image is in the tiles, and nothing twice."""
    model = attach(stock_model("llava_next"), {"vision": {"name": "hired", "budget": 3}})
    host, side = model.model, model.config.vision_config.image_size
    for size in ([2 * side, 2 * side], [side, 2 * side], [3 * side, side]):
        sizes = torch.tensor([size])
        boxes = host.boxes(sizes, host.tile_counts(sizes))
        assert boxes[0].tolist() == [0, 0, 1, 1] and len(boxes) == host.tile_counts(sizes)[0]
        areas = (boxes[1:, 2] - boxes[1:, 0]) * (boxes[1:, 3] - boxes[1:, 1])
        assert areas.sum() == pytest.approx(1.0, abs=1e-5)


class Words:
    """A tokenizer of a word for each id."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join({20: "the", 30: "red", 40: "dog", 60: "ASSISTANT:"}.get(one, f"w{one}") for one in ids)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [{"red": 30, "dog": 40}.get(word) or int(word[1:]) for word in text.split()]}


@torch.no_grad()
def test_the_words_of_the_question_are_those_behind_the_image() -> None:
    model = tiny_model({"vision": {"name": "mmtok", "budget": 5}})
    batch = rows_of([5, 17, *[IMAGE] * PATCHES, 20, 30, 40, 60], [5, *[IMAGE] * PATCHES, 20, 40])
    run = lambda: model(**batch, pixel_values=pixels(2))  # noqa: E731
    (plain,) = seen(model, run)
    assert plain.question is None
    model.model.words = Words()
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = model.model.reducer.forward
    model.model.reducer.forward = lambda image: held.append(image.question()) or forward(image)
    run()
    ((embeddings, mask),) = held
    table = model.get_input_embeddings().weight
    assert mask.tolist() == [[True, True], [True, False]]
    assert torch.equal(embeddings[0], table[[30, 40]]) and torch.equal(embeddings[1, 0], table[40])


@torch.no_grad()
def test_words_are_asked_for_or_taken_where_they_are_known() -> None:
    batch = rows_of([5, *[IMAGE] * PATCHES, 20, 30, 40, 60]) | {"pixel_values": pixels(1)}
    model = tiny_model({"vision": {"name": "mmtok", "budget": 5, "text": "words"}})
    with pytest.raises(ValueError, match="mmtok: text 'words' needs the model's tokenizer .*tokenizer=processor"):
        model(**batch)
    model.model.words = Words()
    chosen = [model.model(**batch).layout.origin]
    for text in ("auto", "all"):
        attach(model, {"vision": {"name": "mmtok", "budget": 5, "text": text}})
        chosen.append(model.model(**batch).layout.origin)
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])


@torch.no_grad()
def test_words_that_nobody_knows_are_said_once_and_attach_can_be_told(caplog: pytest.LogCaptureFixture) -> None:
    batch = rows_of([5, *[IMAGE] * PATCHES, 20, 30, 40, 60]) | {"pixel_values": pixels(1)}
    mmtok = {"vision": {"name": "mmtok", "budget": 5}}
    model = tiny_model({"vision": {"name": "trsm", "budget": 5}})
    model(**batch)
    attach(model, {"vision": {"name": "mmtok", "budget": 5, "text": "all"}})(**batch)
    assert not caplog.records, "their rule takes all prompt tokens"
    attach(model, mmtok)
    blind = [model.model(**batch).layout.origin for _ in range(2)][0]
    (said,) = caplog.messages
    assert "mmtok" in said and "tokenizer=processor" in said
    for given in (Words(), SimpleNamespace(tokenizer=Words())):
        seen_by = attach(detach(model), mmtok, tokenizer=given).model(**batch).layout.origin
        assert not torch.equal(seen_by, blind)
        attach(model, {"vision": {"name": "prumerge"}})
        assert torch.equal(attach(model, mmtok).model(**batch).layout.origin, seen_by), "it is remembered"
    assert len(caplog.messages) == 1
    with pytest.raises(ValueError, match="tokenizer=int is neither a tokenizer nor a processor"):
        attach(model, mmtok, tokenizer=3)
