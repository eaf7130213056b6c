"""LLaVA-Mini in the model: what the first layer gets, what stays plain, what is saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, sample_rows, tiny_model
from torch import Tensor

from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout

MINI = {"name": "llava_mini", "budget": 4, "layers": 2}


def first_layer_of(model: Any, **inputs: Tensor) -> tuple[Tensor, TokenLayout]:
    """What the language model's first layer is given."""
    seen: list[Tensor] = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    output = model(**inputs)
    hook.remove()
    return seen[0], output.layout


@torch.no_grad()
def test_the_first_layer_gets_what_the_fusion_makes_of_patches_tokens_and_text() -> None:
    """Put together by hand for one image, in the authors' order: all patches, the tokens, the text."""
    model = tiny_model({"vision": MINI})
    host, reducer = model.model, model.model.reducer
    ids = sample_rows()[1]
    given, _ = first_layer_of(model, **rows_of(ids), pixel_values=pixels(1))
    tiles = host.encode_images(pixels(1))
    everything = host.project(tiles.features)
    tokens = host.project(reducer.compressor(tiles.features, tiles.grid))
    words = torch.tensor([[word for word in ids if word != IMAGE]])
    states = torch.cat([everything, tokens, model.get_input_embeddings()(words)], dim=1)
    places = torch.arange(states.shape[1])[None]
    causal = torch.ones(states.shape[1], states.shape[1], dtype=torch.bool).tril()[None, None]
    for layer in reducer.prefusion:
        states = layer(states, causal, places)
    fused = states[:, PATCHES:]
    before = ids.index(IMAGE)
    wanted = torch.cat([fused[:, 4 : 4 + before], fused[:, :4], fused[:, 4 + before :]], dim=1)
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_text_alone_and_answers_stay_plain_and_an_answer_changes_nothing_before_it() -> None:
    model = tiny_model({"vision": MINI}).train()
    rows = sample_rows()[:3]
    inputs = rows_of(*rows, side="right") | {"pixel_values": pixels(2)}
    labels = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    for row, ids in enumerate(rows):
        labels[row, len(ids) - 2 : len(ids)] = inputs["input_ids"][row, len(ids) - 2 : len(ids)]
    outcomes = []
    for change in (0, 1):
        asked = dict(inputs)
        asked["input_ids"] = torch.where(
            labels != IGNORE_INDEX, (inputs["input_ids"] + change).clamp(3, 89), inputs["input_ids"]
        )
        given, layout = first_layer_of(model, **asked, labels=labels, use_cache=False)
        plain = model.get_input_embeddings()(asked["input_ids"])
        for row, ids in enumerate(rows):
            real = layout.columns[row][layout.key_mask[row]]
            states = given[row][layout.key_mask[row]]
            embedded = plain[row][real]
            same = (states == embedded).all(dim=1)
            text = torch.tensor([asked["input_ids"][row, at] != IMAGE for at in real.tolist()])
            if IMAGE in ids:
                assert same[-2:].all() and not same[:-2][text[:-2]].any()
            else:
                assert same.all()
        outcomes.append([given[row][layout.key_mask[row]][:-2] for row in range(3)])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)


def test_its_weights_are_named_as_released_and_lie_in_the_checkpoint() -> None:
    names = {key for key in tiny_model({"vision": MINI}).state_dict() if key.startswith("model.reducer.")}
    assert {"model.reducer.compressor.query", "model.reducer.compressor.attn.in_proj_weight"} < names
    assert {
        "model.reducer.prefusion.1.self_attn.q_proj.weight",
        "model.reducer.prefusion.0.mlp.gate_proj.weight",
    } < names
    bare = tiny_model({"vision": MINI | {"layers": 0}})
    assert not any("prefusion" in key for key in bare.state_dict()) and bare.model.reducer.later_turns == "images"
    assert not bare.reads_prompt() and tiny_model({"vision": MINI}).reads_prompt()


def test_a_width_that_does_not_split_is_refused() -> None:
    with pytest.raises(ReductionError, match="llava_mini: heads=5"):
        tiny_model({"vision": MINI | {"heads": 5}})
    with pytest.raises(ReductionError, match="llava_mini: .*heads"):
        build_reducer({"name": "llava_mini", "heads": 0})
