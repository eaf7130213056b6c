"""Asking: the answer is `generate`'s, what is said to be kept is what the methods kept, and the parts' times add up."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llava import PATCHES, REDUCTIONS, stock_twin, tiny_model, tiny_processor

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import STAGES, ask, inspect_image, method_of
from llava_prumerge.inference.watching import watching
from llava_prumerge.methods.base import VisionTokens

QUESTION = "w3 w4 w5"
BOTH = {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}, "decoder": {"name": "fastv", "layer": 2}}


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def inputs_of(model: torch.nn.Module, processor: object, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Put together without the code under test."""
    text = prompt("vicuna_v1", QUESTION, images=len(images))
    ids = torch.tensor([encode(processor.tokenizer, text, model.config.image_token_id, PATCHES)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"pixel_values": ImagePreprocessor(processor.image_processor)(images)} if images else {})


@pytest.mark.parametrize("name", ["none", "prumerge", "fastv_first", "pair", "pyramiddrop_budget"])
def test_the_answer_and_the_counts_are_those_of_generate(name: str) -> None:
    model, images = tiny_model(REDUCTIONS.get(name)), [photo(1), photo(2)]
    processor = tiny_processor()
    inputs = inputs_of(model, processor, images)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    counted = model.reduction_stats()
    answer = ask(model, processor, QUESTION, images, max_new_tokens=5)
    assert answer.text == str(answer) == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert (answer.new_tokens, answer.prompt_tokens) == (len(expected), inputs["input_ids"].shape[1])
    assert [image.full for image in answer.images] == [PATCHES, PATCHES]
    assert answer.kept == 2 * counted["kept_mean"]
    layers = np.mean([image.layers for image in answer.images], axis=0)
    assert layers == pytest.approx(counted["layer_tokens"])
    assert np.mean([image.equivalent for image in answer.images]) == pytest.approx(counted["equivalent_tokens"])
    if name == "none":
        assert answer.images[0].indices == tuple(range(PATCHES)) and answer.seconds["reducer"] == 0
    else:
        assert counted["equivalent_tokens"] < PATCHES, "the method acted"


def test_kept_patches_and_attention_are_the_reducers_own() -> None:
    model = tiny_model(BOTH)
    processor = tiny_processor()
    pixels = ImagePreprocessor(processor.image_processor)([photo(1), photo(2)])
    with torch.no_grad():
        tiles = model.model.encode_images(pixels)
        seen = VisionTokens(tiles.features, tiles.grid, tiles.projections, tiles.heads)
        _, valid, origin = model.model.reducer(seen)
        attention = model.model.reducer.attention(seen)
    answer = ask(model, processor, QUESTION, [photo(1), photo(2)], max_new_tokens=2, attention=True)
    for at, image in enumerate(answer.images):
        assert image.indices == tuple(origin[at][valid[at]].tolist()) and image.grid == (4, 4)
        assert torch.equal(image.attention, attention[at].view(4, 4))
        assert set(image.pruned) == {2} and set(image.pruned[2]) < set(image.indices)
        assert image.layers == (image.kept,) * 2 + (len(image.pruned[2]),) * 2
        assert image.patches == tuple(sorted({index for index in image.indices if index >= 0}))
    assert ask(model, processor, QUESTION, photo(1), max_new_tokens=1).images[0].attention is None
    one = inspect_image(model, processor, photo(1), QUESTION)
    assert one.indices == answer.images[0].indices and one.attention is not None


def test_each_images_own_tokens_are_told_apart_behind_a_pruner() -> None:
    """Against each image's columns in the layout, by a double loop."""
    model = tiny_model({"decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.25}})
    processor = tiny_processor()
    images = [photo(1), photo(2), photo(3)]
    inputs = inputs_of(model, processor, images)
    layout = model(**inputs).layout
    spots = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].view(3, PATCHES).tolist()
    expected = [
        [place for place, column in enumerate(columns) if column in layout.columns[0][layout.key_mask[0]].tolist()]
        for columns in spots
    ]
    answer = ask(model, processor, QUESTION, images, max_new_tokens=1)
    assert [list(image.pruned[1]) for image in answer.images] == expected and sum(map(len, expected)) == 12


def test_the_parts_times_add_up_to_the_run() -> None:
    import time

    model = tiny_model(BOTH)
    processor = tiny_processor()
    begun = time.perf_counter()
    answer = ask(model, processor, QUESTION, photo(1), max_new_tokens=6)
    took = time.perf_counter() - begun
    assert list(answer.seconds) == ["pixels", *STAGES] and all(seconds > 0 for seconds in answer.seconds.values())
    assert answer.total_seconds <= took and answer.total_seconds == pytest.approx(sum(answer.seconds.values()))
    with watching(model) as watched:
        begun = time.perf_counter()
        model(**inputs_of(model, processor, [photo(1)]))
        took = time.perf_counter() - begun
    assert sum(watched.seconds.values()) >= took


def test_another_method_for_one_question_leaves_the_model_as_it_was() -> None:
    model = tiny_model({"decoder": {"name": "atp_llava"}})
    processor = tiny_processor()
    pruner, block = model.model.decoder.pruner, copy.deepcopy(model.config.reduction)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(**inputs_of(model, processor, [photo(1)]))
    answer = ask(model, processor, QUESTION, photo(1), reduction={"vision": {"name": "uniform", "budget": 3}})
    assert answer.images[0].kept == 3 and answer.images[0].layers == (3, 3, 3, 3)
    assert model.model.decoder.pruner is pruner and model.model.reducer is None and model.config.reduction == block
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.reduction_stats()["images"] == 1, "what was counted before stays counted, and nothing else is"
    with method_of(model, block):
        assert model.model.decoder.pruner is pruner, "its own block is its own method, with what it learnt"
    whole = ask(model, processor, QUESTION, photo(1), reduction={})
    assert whole.images[0].layers == (PATCHES,) * 4
    with pytest.raises(InputError):
        ask(model, processor, QUESTION, photo(1), reduction={"vision": {"name": "nothing"}})
    assert model.model.decoder.pruner is pruner and "forward" not in vars(model.model)


def test_a_stock_model_can_be_asked() -> None:
    model = tiny_model()
    stock, processor = stock_twin(model), tiny_processor()
    plain = ask(stock, processor, QUESTION, photo(1), max_new_tokens=5)
    assert plain.text == ask(model, processor, QUESTION, photo(1), max_new_tokens=5).text
    assert ask(stock, processor, QUESTION, photo(1), reduction={"vision": {"name": "uniform", "budget": 2}}).kept == 2


def test_images_come_as_paths_or_pictures_and_need_not_be_there(tmp_path: Path) -> None:
    model = tiny_model(REDUCTIONS["prumerge"])
    processor = tiny_processor()
    photo(1).save(tmp_path / "a.png")
    named = ask(model, processor, QUESTION, str(tmp_path / "a.png"), max_new_tokens=4)
    assert named.images == ask(model, processor, QUESTION, [tmp_path / "a.png"], max_new_tokens=4).images
    assert named.text == ask(model, processor, QUESTION, photo(1).convert("RGBA"), max_new_tokens=4).text
    text = ask(model, processor, QUESTION, max_new_tokens=4)
    assert text.images == () and text.kept == 0 and text.seconds["tower"] == 0 and text.seconds["prefill"] > 0
    with pytest.raises(InputError, match="gone.png"):
        ask(model, processor, QUESTION, tmp_path / "gone.png")
    with pytest.raises(InputError, match="unknown template 'nope'"):
        ask(model, processor, QUESTION, photo(1), template="nope")


@pytest.mark.parametrize("name", ["none", "prumerge"])
def test_attention_without_a_reducer_is_the_class_tokens(name: str) -> None:
    model = tiny_model(REDUCTIONS.get(name))
    processor = tiny_processor()
    seen = inspect_image(model, processor, photo(1), QUESTION)
    with torch.no_grad():
        tiles = model.model.encode_images(ImagePreprocessor(processor.image_processor)([photo(1)]))
    expected = VisionTokens(tiles.features, tiles.grid, tiles.projections, tiles.heads).attention()
    assert torch.equal(seen.attention, expected.view(4, 4)) and seen.grid == (4, 4)


def test_the_signature_of_what_is_wrapped_stays_readable() -> None:
    """transformers reads it to tell which inputs the model takes."""
    import inspect

    model = tiny_model()
    before = inspect.signature(model.model.get_image_features)
    with watching(model):
        assert inspect.signature(model.model.get_image_features) == before
    assert not {"forward", "get_image_features"} & set(vars(model.model))
