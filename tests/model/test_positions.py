"""Positions as a contract: a pruner says whether they stay or are counted anew, and cache, decoding and turns follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, sample_rows, stock_twin, tiny_model
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from llava_prumerge.methods.base import DecoderPruner, DecoderShape
from llava_prumerge.methods.registry import build_pruner, discover, method_names
from llava_prumerge.methods.settings import Settings
from llava_prumerge.model.attach import in_front_of
from llava_prumerge.model.decoder import PrunesLayers
from llava_prumerge.model.placement import ForwardPass
from llava_prumerge.model.stretch import ReducedCache
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout

GOLDEN = Path(__file__).parents[1] / "golden" / "official"
RENUMBERING = [n for n in method_names(DecoderPruner) if discover()[n].positions == "renumbered"]
STAGES = {"name": "pyramiddrop", "layers": [1, 2, 3]}


def released() -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The language model of the golden files, and the arrays."""
    inputs, outputs = (dict(np.load(GOLDEN / f"{name}.npz")) for name in ("decoder_inputs", "pyramiddrop_1_2_3"))
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=int(inputs["layers"]),
        num_attention_heads=int(inputs["heads"]),
        rms_norm_eps=float(inputs["rms_norm_eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(inputs["rope_theta"])},
    )
    config._attn_implementation = "eager"
    model = LlamaModel(config).eval()
    weights = {
        key.removeprefix("weight."): torch.from_numpy(v) for key, v in inputs.items() if key.startswith("weight.")
    }
    report = model.load_state_dict(weights, strict=False)
    assert report.missing_keys == ["embed_tokens.weight"] and not report.unexpected_keys
    model.__class__ = in_front_of(PrunesLayers, LlamaModel)
    model.pruner = build_pruner(STAGES, DecoderShape(4, 16, 2, 64)).eval()
    return model, inputs, outputs


@torch.no_grad()
def test_pyramiddrop_is_the_released_one_in_decoding_too() -> None:
    """Kept sets, positions, last states and two cached steps of the authors' code (Cooperx521/PyramidDrop 6444f30)."""
    model, inputs, outputs = released()
    start, length = int(inputs["image_start"]), int(inputs["image_length"])
    embeds = torch.from_numpy(inputs["inputs_embeds"])
    is_image = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    is_image[:, start : start + length] = True
    seen: list[TokenLayout] = []
    plain = model.pruner.forward

    def watched(layer: int, tokens: Any) -> Tensor | None:
        seen.append(tokens.layout)
        return plain(layer, tokens)

    model.pruner.forward = watched
    told = ForwardPass(is_image=is_image, images=torch.tensor([1]))
    told.origin = torch.full(embeds.shape[:2], -1).masked_scatter(is_image, torch.arange(length))
    output = model(inputs_embeds=embeds, forward_pass=told, use_cache=True)
    layouts = [*seen[1:], told.layout]
    for stage, layout in enumerate(layouts, start=1):
        assert layout.origin[layout.is_image].tolist() == outputs[f"kept_stage{stage}"].tolist()
        assert layout.position_ids.tolist() == outputs[f"positions_stage{stage}"].tolist()
    found, cache = [output.last_hidden_state], output.past_key_values
    for step in torch.from_numpy(inputs["decode_embeds"]):
        again = ForwardPass()
        found.append(
            model(inputs_embeds=step[None], forward_pass=again, past_key_values=cache, use_cache=True).last_hidden_state
        )
    expected = [outputs["last_hidden"], *(outputs["decode_hidden"][:, None])]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert [cache.next_positions[layer].item() for layer in range(4)] == [80, 48, 32, 24]


def batch_of(side: str = "left") -> dict[str, Tensor]:
    return rows_of(*sample_rows(), side=side) | {"pixel_values": pixels(4)}


@pytest.mark.parametrize("name", RENUMBERING)
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_consecutive_after_each_drop_in_every_row(name: str, side: str) -> None:
    layout = tiny_model({"decoder": {"name": name}}).model(**batch_of(side)).layout
    for row in range(4):
        real = layout.position_ids[row][layout.key_mask[row]]
        assert torch.equal(real, torch.arange(len(real)))


def test_pruners_that_leave_positions_leave_them() -> None:
    for name in method_names(DecoderPruner):
        if name in RENUMBERING:
            continue
        layout = tiny_model({"decoder": {"name": name}}).model(**batch_of()).layout
        ahead = (batch_of()["attention_mask"] == 0).sum(dim=1, keepdim=True)
        assert torch.equal((layout.columns - ahead)[layout.key_mask], layout.position_ids[layout.key_mask]), name


def test_renumbering_is_a_shorter_sequence_for_the_layers_behind() -> None:
    """The layers after a drop are the stock layers on a sequence that never held what is gone."""
    model = tiny_model({"decoder": {"name": "pyramiddrop", "layers": [2]}})
    inputs = rows_of(sample_rows()[0]) | {"pixel_values": pixels(1)}
    states: list[Tensor] = []
    model.model.language_model.layers[2].register_forward_pre_hook(lambda _m, given: states.append(given[0]))
    found = model(**inputs).logits
    stock = stock_twin(model)
    decoder = stock.model.language_model
    hidden, places = states[0], torch.arange(states[0].shape[1])[None]
    for layer in decoder.layers[2:]:
        angles = decoder.rotary_emb(hidden, places)
        hidden = layer(hidden, attention_mask=None, position_embeddings=angles)
    assert hidden.shape[1] == inputs["input_ids"].shape[1] - PATCHES // 2
    torch.testing.assert_close(found, stock.lm_head(decoder.norm(hidden)), atol=1e-5, rtol=1e-4)


class EverySecond(DecoderPruner):
    """Keeps every second unit, whatever is asked, and counts positions anew."""

    name = "every_second"
    positions = "renumbered"
    later_turns = "images"

    def forward(self, layer: int, tokens: Any) -> Tensor:
        return ~tokens.layout.is_image | (tokens.layout.origin % 2 == 0)


@pytest.mark.parametrize("reduction", [None, {"vision": {"name": "uniform", "budget": 6}}], ids=["all", "reduced"])
def test_turns_on_a_cache_go_on_where_each_stretch_is(reduction: dict[str, Any] | None) -> None:
    """Text, then an image, then text: as in one run of all, and each stretch of layers counts what it has seen."""
    model = tiny_model(reduction)
    model.model.language_model.pruner = EverySecond(Settings(), DecoderShape(4, 32, 4, PATCHES), [2])
    turns = [[1, 5, 6, 7], [*[IMAGE] * PATCHES, 11, 12, 13], [14, 15]]
    whole = model(**rows_of(sum(turns, [])), pixel_values=pixels(1))
    cache = ReducedCache(config=model.config.text_config)
    counted = []
    for turn in turns:
        pictures = {"pixel_values": pixels(1)} if IMAGE in turn else {}
        output = model(input_ids=torch.tensor([turn]), **pictures, past_key_values=cache, use_cache=True)
        counted.append({layer: int(at) for layer, at in cache.next_positions.items()})
    torch.testing.assert_close(output.logits[0, -1], whole.logits[0, -1], atol=1e-5, rtol=1e-4)
    first, last = (6, 3) if reduction else (PATCHES, PATCHES // 2)
    kept = int(whole.layout.is_image.sum())
    assert counted == [{0: 4}, {0: 7 + first, 2: 7 + kept}, {0: 9 + first, 2: 9 + kept}] and kept <= last + 1


def layout_of(labels: list[int]) -> TokenLayout:
    """Two visual tokens ahead of text with these labels."""
    targets = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, *labels]])
    shifted = torch.cat([targets[:, 1:], torch.full((1, 1), IGNORE_INDEX)], dim=1)
    real = torch.ones_like(targets, dtype=torch.bool)
    image = torch.arange(targets.shape[1])[None] < 2
    places = torch.arange(targets.shape[1])[None]
    return TokenLayout(is_image=image, key_mask=real, position_ids=places, origin=places, shift_labels=shifted)


def test_every_turns_last_instruction_token_ranks_in_training() -> None:
    no = IGNORE_INDEX
    layout = layout_of([no, no, 7, 8, no, no, no, 9])  # question, answer, question, answer
    assert layout.turn_ends().nonzero()[:, 1].tolist() == [3, 8]
    assert layout.question_mask().nonzero()[:, 1].tolist() == [2, 3, 6, 7, 8]


def test_training_on_two_turns_ranks_by_both() -> None:
    """What stays is the best by the mean of the two rows; either alone would keep others."""
    model = tiny_model({"decoder": {"name": "pyramiddrop", "layers": [1]}})
    ids = torch.tensor([[1, *[IMAGE] * PATCHES, 41, 12, 13, 17, 25, 60, 14, 15]])
    answers = [3 + PATCHES, 4 + PATCHES, 7 + PATCHES, 8 + PATCHES]
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, answers] = ids[:, answers]
    kept, projections = {}, model.model.language_model.layer_projections
    full = tiny_model()
    reference = full(input_ids=ids, pixel_values=pixels(1), output_hidden_states=True).hidden_states[1]
    layout = ForwardPass(is_image=ids == IMAGE).begin(torch.ones_like(ids, dtype=torch.bool), 0)
    scores = (
        projections(1, reference, layout)
        .attention(torch.tensor([[2 + PATCHES, 6 + PATCHES]]))
        .mean(dim=1)[0][:, 1 : 1 + PATCHES]
    )
    for name, score in (("both", scores.mean(dim=0)), ("first", scores[0]), ("second", scores[1])):
        kept[name] = sorted(score.topk(PATCHES // 2).indices.tolist())
    found = model.model(input_ids=ids, pixel_values=pixels(1), labels=labels).layout
    assert found.origin[found.is_image].tolist() == kept["both"] and kept["both"] not in (kept["first"], kept["second"])
