"""The family's vision side in the model: which block is asked, that the prompt decides, that answers stay unseen."""

from __future__ import annotations

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, sample_rows, tiny_model

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.model.vision_tower import encode
from llava_prumerge.ops.layout import IGNORE_INDEX

PROMPTED = {"trsm": {"name": "trsm", "keep_ratio": 0.3}, "par": {"name": "par", "keep_ratio": 0.3, "threshold": 0.4}}
OTHERS = {name: {"name": name, "budget": 5} for name in ("tome", "visionzip", "fastervlm", "divprune")}
FAMILY = PROMPTED | OTHERS
GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


def batch_of(side: str = "left") -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows(), side=side) | {"pixel_values": pixels(4)}


def alone(row: int) -> dict[str, torch.Tensor]:
    """One row of the batch by itself, with its own images."""
    sequences = sample_rows()
    first = sum(ids.count(IMAGE) // PATCHES for ids in sequences[:row])
    inputs = rows_of(sequences[row])
    count = sequences[row].count(IMAGE) // PATCHES
    return inputs | ({"pixel_values": pixels(4)[first : first + count]} if count else {})


def asking(*words: int) -> dict[str, torch.Tensor]:
    return rows_of([1, 17, *[IMAGE] * PATCHES, *words]) | {"pixel_values": pixels(1)}


def kept(model: torch.nn.Module, **inputs: torch.Tensor) -> list[int]:
    layout = model.model(**inputs).layout
    return layout.origin[0][layout.is_image[0]].tolist()


def test_own_and_next_block_are_the_towers() -> None:
    """Class rows computed from projections equal the attentions the blocks really have."""
    model = tiny_model(attn="eager")
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    output = model.model.encode_images(pixels(3))
    attentions = tower(pixel_values=pixels(3), output_attentions=True).attentions
    image = VisionTokens(output.features, output.grid, output.projections, output.heads)
    for own, block in ((True, -2), (False, -1)):
        expected = attentions[block][:, :, 0, 1:].mean(dim=1)
        torch.testing.assert_close(image.attention(per_head=True, own=own), expected, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(image.attention(per_head=True, own=True), image.attention(per_head=True), atol=1e-3)


def test_the_embeddings_have_no_block_of_their_own() -> None:
    output = encode(tiny_model().model.vision_tower, pixels(1), feature_layer=0)
    assert output.projections()[1].shape == (1, PATCHES + 1, 32)
    with pytest.raises(ValueError, match="vision_feature_layer 0 takes the embeddings"):
        output.projections(own=True)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("side", ["left", "right"])
def test_acts_and_batch_equals_single(name: str, side: str) -> None:
    model = tiny_model({"vision": FAMILY[name]})
    together = model(**batch_of(side))
    layout = model.model(**batch_of(side)).layout
    assert layout.is_image.sum(dim=1).tolist() == [5, 5, 0, 10]
    for row, end in enumerate(layout.last_index()):
        torch.testing.assert_close(together.logits[row, end], model(**alone(row)).logits[0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_cached_generation_in_a_batch_equals_each_alone(name: str) -> None:
    model = tiny_model({"vision": FAMILY[name]})
    inputs = batch_of()
    start = inputs["input_ids"].shape[1]
    answers = model.generate(**inputs, **GREEDY)[:, start:]
    if name not in PROMPTED:  # without a cache every step is a new question, its beginning of an answer included
        assert torch.equal(answers, model.generate(**inputs, **GREEDY, use_cache=False)[:, start:])
    for row in range(4):
        one = alone(row)
        assert torch.equal(answers[row], model.generate(**one, **GREEDY)[0, one["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", FAMILY)
def test_only_prompt_aware_methods_follow_the_question(name: str) -> None:
    model = tiny_model({"vision": FAMILY[name]})
    questions = [(20, 30, 40), (51, 62, 73), (84, 35, 26)]
    choices = {tuple(kept(model, **asking(*words))) for words in questions}
    assert all(len(choice) == 5 for choice in choices)
    assert (len(choices) > 1) == (name in PROMPTED)


@pytest.mark.parametrize("name", PROMPTED)
def test_what_is_retrieved_is_what_is_like_the_question(name: str) -> None:
    """With a question whose embeddings are some patches' projected features, those patches stay."""
    model = tiny_model({"vision": FAMILY[name] | {"budget": 3} | ({"threshold": 1} if name == "par" else {})})
    with torch.no_grad():
        features = model.model.project(model.model.encode_images(pixels(1)).features)[0]
        spread = features - features.mean(dim=0)
        embeddings = model.get_input_embeddings().weight
        embeddings[[1, 17]] = 0.0
        for word, patch in ((20, 4), (30, 9), (40, 14)):
            embeddings[word] = 10 * spread[patch]
    assert kept(model, **asking(20, 30, 40)) == [4, 9, 14]


@pytest.mark.parametrize("name", PROMPTED)
def test_the_answer_is_no_part_of_the_prompt(name: str) -> None:
    """In training the tokens to be predicted choose nothing: what stays is what would stay when the model is asked."""
    model = tiny_model({"vision": FAMILY[name]})
    question, answer = [20, 30, 40], [51, 62, 73, 84]
    whole = asking(*question, *answer)
    labels = whole["input_ids"].clone()
    labels[:, : -len(answer)] = IGNORE_INDEX
    asked = kept(model, **asking(*question))
    assert kept(model, **whole, labels=labels) == asked
    assert kept(model, **whole) != asked, "the answer would have changed the choice"


@pytest.mark.parametrize("name", FAMILY)
def test_training_reaches_the_projector(name: str) -> None:
    model = tiny_model({"vision": FAMILY[name]}).train()
    inputs = batch_of("right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    labels[:, :-3] = IGNORE_INDEX
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    model.zero_grad()
    text = rows_of(sample_rows()[2])
    model(**text, labels=text["input_ids"], use_cache=False).loss.backward()
    grad = model.model.multi_modal_projector.linear_1.weight.grad
    assert grad is not None and not grad.any(), "a batch without images takes part with weight zero"


@pytest.mark.parametrize("name", FAMILY)
def test_bfloat16(name: str) -> None:
    model = tiny_model({"vision": FAMILY[name]}).to(torch.bfloat16)
    output = model(**batch_of())
    assert output.logits.dtype == torch.bfloat16 and output.logits.isfinite().all()


@pytest.mark.parametrize("name", PROMPTED)
def test_clip_space_is_refused_by_a_tower_without_text_side(name: str) -> None:
    with pytest.raises(ValueError, match="take space llm"):
        tiny_model({"vision": FAMILY[name] | {"space": "clip"}})(**asking(20))
