"""RESTORE on top of reducers: anchors against loops, weights of keys against copies, calibration against the formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_llava import pixels, rows_of, sample_rows, tiny_model
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.methods.restoring import with_anchors
from llava_prumerge.model.key_bias import KeyBias
from llava_prumerge.model.stretch import Stretch
from llava_prumerge.ops.layout import Calibration, TokenLayout

BASE = {"name": "fastervlm", "budget": 6}
ALL = {"positions": "original", "anchors": "1/2", "proportional": True, "calibration": 2.0}
PARTS = {key: {key: value} for key, value in ALL.items() if key != "proportional"} | {
    "proportional": {"anchors": "1/2", "proportional": True}
}


def batch_of() -> dict[str, Tensor]:
    return rows_of(*sample_rows()) | {"pixel_values": pixels(4)}


def test_with_everything_off_it_is_the_plain_method() -> None:
    off = {"positions": "contiguous", "anchors": 0, "proportional": False, "calibration": None}
    plain, other = (tiny_model({"vision": BASE | more})(**batch_of()).logits for more in ({}, off))
    assert torch.equal(plain, other)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_changes_the_outcome_and_keeps_the_budget(part: str) -> None:
    without = {"anchors": "1/2"} if part == "proportional" else {}
    plain, model = tiny_model({"vision": BASE | without})(**batch_of()), tiny_model({"vision": BASE | PARTS[part]})
    output = model(**batch_of())
    assert not torch.allclose(output.logits[0, -1], plain.logits[0, -1], atol=1e-4)
    assert model.model(**batch_of()).visual[:, 0].tolist() == [6, 6, 0, 12]
    weighs = output.layout.key_weight is not None
    assert weighs == (part == "proportional")
    if weighs:
        of_images = torch.where(output.layout.is_image, output.layout.key_weight, 0.0).sum(dim=1)
        assert of_images.tolist() == [16, 16, 0, 32], "every patch is in one token"


def loops(features: Tensor, kept: list[int], budget: int) -> list[tuple[int, Tensor, int]]:
    """(middle, feature, size) of each token of one image, by loops over tokens."""
    rest = [at for at in range(len(features)) if at not in kept]
    unit = [row / row.norm() for row in features]
    likeness = {(i, j): float(unit[i] @ unit[j]) for i in rest for j in rest}
    total = {i: sum(likeness[i, j] for j in rest) for i in rest}
    score = {}
    for i in rest:
        above = [likeness[i, j] for j in rest if total[j] > total[i] or (total[j] == total[i] and j < i)]
        score[i] = total[i] * (1 - max(above)) if above else total[i]
    anchors = sorted(sorted(rest, key=lambda i: -score[i])[: budget - len(kept)])
    groups = {anchor: [anchor] for anchor in anchors}
    for i in rest:
        if i not in anchors:
            groups[max(anchors, key=lambda anchor: likeness[i, anchor])].append(i)
    found = [(at, features[at], 1) for at in kept]
    for members in groups.values():
        middle = sorted(members)[(len(members) - 1) // 2]
        found.append((middle, features[members].mean(dim=0), len(members)))
    return sorted(found, key=lambda token: token[0])


@pytest.mark.parametrize("budget", [4, 9, 20])
def test_anchors_equal_the_loops(budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    features = torch.randn(3, 20, 8, generator=generator)
    kept = torch.stack([torch.randperm(20, generator=generator)[: budget // 2] for _ in range(3)])  # in any order
    chosen = features.gather(1, kept[..., None].expand(-1, -1, 8)), torch.ones_like(kept, dtype=torch.bool), kept
    (made, valid, origin), sizes = with_anchors(features, chosen, budget)
    assert valid.all() and made.shape == (3, budget, 8)
    for row in range(3):
        wanted = loops(features[row], kept[row].tolist(), budget)
        assert origin[row].tolist() == [middle for middle, _, _ in wanted]
        assert sizes[row].tolist() == [size for _, _, size in wanted]
        torch.testing.assert_close(made[row], torch.stack([feature for _, feature, _ in wanted]))


@pytest.mark.parametrize("name", ["prumerge_plus", "divprune", "visionzip", "trsm", "pool"])
def test_tokens_that_stand_for_several_already_keep_their_place(name: str) -> None:
    model = tiny_model({"vision": {"name": name, "budget": 6, **ALL}})
    output = model.model(**batch_of())
    assert output.visual[:, 0].tolist() == [6, 6, 0, 12] and output.last_hidden_state.isfinite().all()


def attend(query: Tensor, keys: Tensor, values: Tensor, added: list[float]) -> Tensor:
    """Attention of one query, one key at a time."""
    logits = [float(query @ key) + more for key, more in zip(keys, added, strict=True)]
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def test_a_weight_of_s_is_s_equal_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(shape, generator=generator) for shape in ((4,), (5, 4), (5, 4)))
    sizes = [1, 3, 1, 7, 2]
    layout = layout_of(5, key_weight=torch.tensor([sizes], dtype=torch.float32))
    blank = torch.zeros(1, 1, 5, 5)
    added = KeyBias(layout, None, None, 0).added_to(blank, torch.float32, "", lambda: None)[0, 0, -1]
    repeats = torch.tensor(sizes)
    copies = attend(query, keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0), [0.0] * sum(sizes))
    torch.testing.assert_close(attend(query, keys, values, added.tolist()), copies)


def layout_of(length: int, **changes: Any) -> TokenLayout:
    places = torch.arange(length)[None]
    real = torch.ones_like(places, dtype=torch.bool)
    return TokenLayout(**dict(is_image=real, key_mask=real, position_ids=places, origin=places) | changes)


@pytest.mark.parametrize("text", [False, True])
def test_the_mask_is_the_formula_number_by_number(text: bool) -> None:
    """log s + log(c - D) on visual keys or on all, D from transformers' own rotation of a vector of ones."""
    model = tiny_model({"vision": BASE | ALL})
    decoder, width = model.model.language_model, 8
    positions = torch.tensor([[0, 1, 5, 9, 20, 21, 30]])
    is_image = torch.tensor([[False, True, True, True, True, False, False]])
    weight = torch.tensor([[1.0, 2.0, 1.0, 5.0, 1.0, 1.0, 1.0]])
    layout = layout_of(7, is_image=is_image, position_ids=positions, key_weight=weight)
    stretch = Stretch(decoder, layout, torch.zeros(1, 7, 32), None)
    stretch.calibration = Calibration(2.0, text)
    stretch.begin(0)
    mask = stretch.mask(0)[0, 0]
    ones = torch.ones(1, 1, 7, width)
    cos, sin = decoder.rotary_emb(ones, positions)
    turned = apply_rotary_pos_emb(ones, ones, cos, sin)[0][0, 0]
    for query in range(7):
        for key in range(7):
            if key > query:
                assert mask[query, key] <= torch.finfo(torch.float32).min / 2
                continue
            near = float(turned[query] @ turned[key]) / width
            wanted = math.log(float(weight[0, key])) + (math.log(2 - near) if text or is_image[0, key] else 0.0)
            assert float(mask[query, key]) == pytest.approx(wanted, abs=1e-5)
    assert abs(float(mask[6, 6])) < 1e-6 and float(mask[3, 3]) == pytest.approx(math.log(5.0), abs=1e-5)


def test_rows_that_a_pruner_asks_for_are_the_layers_own() -> None:
    """Behind RESTORE, against the weights that eager attention returns."""
    reduction = {"vision": BASE | ALL, "decoder": {"name": "fastv", "layer": 2, "keep_ratio": 1.0}}
    model, seen = tiny_model(reduction, attn="eager"), {}
    decoder = model.model.language_model
    decoder.layers[1].self_attn.register_forward_hook(lambda _m, _given, result: seen.update(whole=result[1]))

    def ask(layer: int, tokens: Any) -> None:
        rows = tokens.layout.last_index()[:, None]
        seen["rows"], seen["asked"], seen["real"] = rows, tokens.attention(layer - 1, rows), tokens.layout.key_mask

    decoder.pruner.forward = ask
    model(**batch_of())
    expected = seen["whole"].gather(2, seen["rows"][:, None, :, None].expand(-1, 4, -1, seen["whole"].shape[-1]))
    real = seen["real"][:, None, None].expand_as(expected)
    torch.testing.assert_close(seen["asked"][real], expected[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"name": "fastervlm", "anchors": "1/2"}, "anchors=1/2 share a budget .* give budget"),
        ({"name": "downsample", "budget": 4, "anchors": "1/2"}, "nothing of what went is there"),
        ({"name": "flowcut", "budget": 4, "anchors": "1/2"}, "nothing of what went is there"),
        ({"name": "fastervlm", "budget": 4, "proportional": True}, "proportional needs anchors"),
        ({"name": "fastervlm", "budget": 4, "anchors": 1}, r"anchors 1 is not a number in \[0, 1\)"),
        ({"name": "fastervlm", "calibrated": "all"}, "calibrated=all needs calibration"),
        ({"name": "fastervlm", "calibration": 1.0}, "calibration 1.0 is not a number above 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ReductionError, match=f"{settings['name']}: .*{words}"):
        build_reducer(settings)


def test_flash_attention_is_refused_in_one_line() -> None:
    model = tiny_model({"vision": BASE | ALL})
    stretch = Stretch(model.model.language_model, layout_of(4), torch.zeros(1, 4, 32), None)
    stretch.calibration = Calibration(2.0)
    stretch.begin(0)
    stretch.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 takes no mask .* calibration .* take sdpa or eager"):
        stretch.mask(0)


CACHED = {**PARTS, "all": ALL, "all, of all keys": ALL | {"calibrated": "all"}}


@pytest.mark.parametrize("part", CACHED)
@torch.no_grad()
def test_decoding_from_a_cache_equals_computing_everything_again(part: str) -> None:
    model = tiny_model({"vision": BASE | CACHED[part]})
    wanted = dict(
        max_new_tokens=4, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
    )
    cached, whole = (model.generate(**batch_of(), **wanted, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(whole.logits), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_calibrating_keys_of_text_too_changes_the_outcome() -> None:
    plain, other = (
        tiny_model({"vision": BASE | {"calibration": 2.0, "calibrated": keys}})(**batch_of()).logits
        for keys in ("visual", "all")
    )
    assert not torch.allclose(plain[0, -1], other[0, -1], atol=1e-4)
