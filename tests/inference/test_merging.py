"""Weights of patches in tokens: what is found without knowing a method is what the method's own formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llava import tiny_model, tiny_processor
from vision_tokens import REDUCERS, make_tokens

from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.inference.asking import inspect_image
from llava_prumerge.inference.merging import merge_weights
from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.select import leftover_weights, nearest_weights


@pytest.mark.parametrize("name", REDUCERS)
def test_tokens_are_the_weighted_sums_of_their_patches(name: str) -> None:
    reducer, tokens = build_reducer({"name": name}), make_tokens(width=32)
    with torch.inference_mode():
        features, valid, origin = reducer(tokens)
        weights, (made, held, stands) = merge_weights(reducer, tokens)
    assert torch.equal(made, features) and torch.equal(held, valid) and torch.equal(stands, origin), "the same again"
    if weights is None:
        pytest.skip(f"{name} makes tokens that are no weighted sums of patches")
    made_of_patches = weights.abs().sum(dim=2) > 0
    assert not made_of_patches[~valid].any()
    sums = weights @ tokens.features
    torch.testing.assert_close(sums[made_of_patches], features[made_of_patches], rtol=1e-3, atol=1e-4)
    alone = (valid & ~made_of_patches).sum(dim=1)
    assert int(alone.max()) <= 1, "at most a class token is made of no patch"


@pytest.mark.parametrize("merge", ["sum", "average"])
def test_prumerges_weights_are_those_of_its_formula(merge: str) -> None:
    reducer, tokens = build_reducer({"name": "prumerge", "budget": 20, "merge": merge}), make_tokens()
    weights, (_, _, origin) = merge_weights(reducer, tokens)
    attention = tokens.attention()
    centres = origin[:, :-1]
    assert (centres >= 0).all() and (origin[:, -1] == -1).all()
    expected = nearest_weights(tokens.keys, attention, centres, 32, merge)
    torch.testing.assert_close(weights[:, :-1], expected, rtol=1e-4, atol=1e-6)
    dropped = torch.ones_like(attention, dtype=torch.bool).scatter(1, centres, False)
    extra = leftover_weights(attention, dropped, merge == "average")
    torch.testing.assert_close(weights[:, -1:], extra, rtol=1e-4, atol=1e-6)


def test_a_token_that_is_no_weighted_sum_has_no_weights() -> None:
    def squared(tokens: VisionTokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        one = torch.zeros(len(tokens.features), 1, dtype=torch.long)
        return (tokens.features**2).sum(dim=1, keepdim=True), one == 0, one - 1

    weights, (features, valid, _) = merge_weights(squared, make_tokens())
    assert weights is None and features.shape[1] == 1 and valid.all()


@pytest.mark.parametrize("name", ["prumerge", "visionzip", "trsm", "tome"])
def test_a_models_tiles_carry_them(name: str) -> None:
    model, processor = tiny_model({"vision": {"name": name, "budget": 5}}), tiny_processor()
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    seen = inspect_image(model, processor, photo, "w3 w4 w5", merges=True)
    (tile,) = seen.tiles
    assert tile.made == seen.indices and tile.weights.shape == (5, 16)
    with torch.no_grad():
        cut = model.model.encode_images(ImagePreprocessor(processor.image_processor)([photo]))
        features = cut.features if model.model.reducer.site == "tower" else model.model.project(cut.features)
        text = model.get_input_embeddings()(torch.arange(3, 9)[None]), torch.ones(1, 6, dtype=torch.bool)
        given = VisionTokens(features, cut.grid, cut.projections, cut.heads, lambda: text, class_token=cut.class_token)
        out, _, origin = model.model.reducer(given)
    if name != "trsm":  # which reads the whole prompt
        assert tuple(origin[0].tolist()) == tile.made
        first = int(name == "visionzip")  # its class token is no patch's
        torch.testing.assert_close((tile.weights @ features[0])[first:], out[0, first:], rtol=1e-3, atol=1e-4)
    own = tile.weights[torch.arange(5), torch.tensor(tile.made).clamp(min=0)]
    assert (own[torch.tensor(tile.made) >= 0] > 0).all(), "a token takes part of the patch that it stands for"
    assert inspect_image(model, processor, photo, "w3 w4 w5").tiles[0].weights is None
