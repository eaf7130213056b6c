"""ATP-LLaVA: scores against loops, masks and losses against the equations, gradients, counts per image and layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoder_tokens import build, make_tokens, run, shape_of, tokens_of, with_layout
from tiny_llava import PATCHES, pixels, rows_of, sample_rows, tiny_model
from torch import Tensor

from llava_prumerge.methods.base import DecoderTokens, ReductionError
from llava_prumerge.ops.layout import IGNORE_INDEX, LEAST_WEIGHT

BLOCK = {"decoder": {"name": "atp_llava"}}


def loops(tokens: DecoderTokens, row: int, axis: str, weight: Tensor) -> tuple[list[float], list[float]]:
    """Eq. 3 and 4 for one sequence, one pair of tokens at a time. -> scores of its visual tokens"""
    layout = tokens.layout
    queries, keys = tokens.queries(0)[row], tokens.keys(0)[row]
    images = [place for place in range(layout.is_image.shape[1]) if layout.is_image[row, place]]
    own, cross = [], []
    for place in images:
        logits = []
        for other in images:
            query, key = (other, place) if axis == "received" else (place, other)
            heads = [
                float(queries[head, query] @ keys[head, key]) / math.sqrt(queries.shape[-1])
                for head in range(len(keys))
            ]
            logits.append(sum(heads) / len(heads))
        total = sum(float(weight[row, other]) for other in images)
        own.append(sum(logit * float(weight[row, other]) for logit, other in zip(logits, images, strict=True)) / total)
    asking = [place for place in range(images[-1] + 1, layout.is_image.shape[1]) if layout.key_mask[row, place]]
    for place in images:
        heard = [
            tokens.attention(0, torch.full((len(layout.is_image), 1), query))[row, :, 0, place].mean()
            for query in asking
        ]
        cross.append(float(sum(heard) / len(heard)))
    return own, cross


@pytest.mark.parametrize("axis", ["received", "given"])
@pytest.mark.parametrize("soft", [False, True])
def test_scores_equal_the_loops(axis: str, soft: bool) -> None:
    """Soft masks of earlier modules weigh the mean; without any it is a mean over the tokens that are there."""
    tokens = make_tokens((16, 9), after=(3, 5))
    pruner = build("atp_llava", shape_of(patches=16), axis=axis)
    weight = tokens.layout.is_image.float()
    if soft:
        weight = weight * torch.rand(weight.shape, generator=torch.Generator().manual_seed(1))
        pruner._passed = weight
    own, cross = pruner._scores(1, tokens)
    for row in range(2):
        expected = loops(tokens, row, axis, weight)
        image = tokens.layout.is_image[row]
        torch.testing.assert_close(own[row, image], torch.tensor(expected[0]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(cross[row, image], torch.tensor(expected[1]), atol=1e-6, rtol=1e-4)


def test_spatial_scores_are_those_of_nested_samplings() -> None:
    """Eq. 5 with lambda 3: rates 1/4, 1/16, 1/64 score 1/4, 13/16, 61/64; 144 of 576 patches are in a sampling."""
    pruner = build("atp_llava", shape_of(patches=576))
    scores = pruner.spatial_scores(torch.arange(-1, 576)[None])[0]
    assert scores[0] == 0, "a token that stands for no patch"
    for at in range(576):
        row, column = divmod(at, 24)
        rate = next((1 / s**2 for s in (8, 4, 2) if row % s == 0 and column % s == 0), None)
        assert float(scores[at + 1]) == pytest.approx(0.0 if rate is None else 1 - 3 * rate)
    assert int((scores > 0).sum()) == 144 and int((scores > 0.5).sum()) == 36 and int((scores > 0.9).sum()) == 9
    other = build("atp_llava", shape_of(patches=576), lambda_sample=2.0, strides=[3, 6], outside=-100)
    scores = other.spatial_scores(torch.arange(576)[None])[0]
    assert sorted(set(scores.tolist())) == pytest.approx([-100, 1 - 2 / 9, 1 - 2 / 36])


def set_thresholds(pruner: Any, layer: int, redundant: float, spatial: float) -> None:
    """Fix a module's thresholds for every image."""
    module = pruner.modules_before[str(layer)]
    with torch.no_grad():
        heads = zip((module.redundant, module.spatial), (redundant, spatial), module.start, strict=True)
        for head, value, start in heads:
            head.weight.zero_()
            head.bias.fill_(math.log(value / (1 - value)) - start)


def test_each_threshold_has_its_start() -> None:
    settings = {"layers": [2, 5], "start": 0.6, "start_later": 0.2, "start_spatial": 0.9}
    for given, wanted in ((settings, [(0.6, 0.9), (0.2, 0.9)]), ({"layers": [2, 5], "start": 0.3}, [(0.3, 0.3)] * 2)):
        pruner = build("atp_llava", shape_of(patches=16), **given)
        with torch.no_grad():
            for parameter in pruner.parameters():
                parameter.zero_()
            found = [module(torch.rand(1, 32)) for module in pruner.modules_before.values()]
        assert [pytest.approx(pair) for pair in wanted] == [tuple(map(float, pair)) for pair in found]


@pytest.mark.parametrize("received", ["redundant", "important"])
@pytest.mark.parametrize("temperature", [10.0, 100.0])
def test_masks_are_the_equations(temperature: float, received: str) -> None:
    """Eq. 9-11: the larger of two sigmoids in training; at inference a token stays where that is above one half."""
    tokens = make_tokens((16, 9), after=(3, 5))
    settings = {"layers": [2], "temperature": temperature, "received": received, "gate": "soft"}
    pruner = build("atp_llava", shape_of(patches=16), **settings)
    set_thresholds(pruner, 2, 0.4, 0.6)
    hard = pruner(2, tokens)
    image = tokens.layout.is_image
    own, cross = (pruner._scaled(score, image) for score in pruner._scores(2, tokens))
    own = torch.where(image, 1 - own, 0.0) if received == "redundant" else own
    spatial = pruner.spatial_scores(tokens.layout.origin)
    expected = torch.maximum(
        torch.sigmoid(((own + cross) / 2 - 0.4) * temperature), torch.sigmoid((spatial - 0.6) * temperature)
    )
    assert torch.equal(hard[image], (((own + cross) / 2 > 0.4) | (spatial > 0.6))[image]) and hard[~image].all()
    assert 0 < hard[image].sum() < image.sum()
    soft = pruner.train()(2, tokens)
    torch.testing.assert_close(soft[image], expected[image])
    assert torch.equal(soft[image] > 0.5, hard[image]) and (soft[~image] == 1).all()


def test_scores_are_brought_to_0_and_1_over_what_is_there() -> None:
    pruner = build("atp_llava", shape_of(patches=4))
    scores = torch.tensor([[3.0, -1.0, 1.0, 99.0], [5.0, 5.0, 5.0, 5.0]])
    present = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert pruner._scaled(scores, present).tolist() == [[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
    raw = build("atp_llava", shape_of(patches=4), scale="none")
    assert raw._scaled(scores, present).tolist() == [[3.0, -1.0, 1.0, 0.0], [5.0, 5.0, 0.0, 0.0]]


def test_the_linear_map_reads_scores_by_place() -> None:
    """Where a token lies in the sequence and how many are left does not matter, its place in the grid does."""
    pruner = build("atp_llava", shape_of(patches=4))
    origin, scores = torch.tensor([[-1, 2, 0, 2, -1]]), torch.tensor([[9.0, 1.0, 4.0, 2.0, 9.0]])
    assert pruner._by_place(origin, scores, -scores).tolist() == [[4.0, 0.0, 1.5, 0.0, -4.0, 0.0, -1.5, 0.0]]


def test_losses_are_the_equations() -> None:
    """Eq. 12-14 by hand: masks multiply, N is per image and averaged over the batch."""
    tokens = make_tokens((16, 9), after=(3, 5))
    tokens = with_layout(tokens, images=torch.tensor([1, 1]))
    settings = {
        "layers": [2, 5],
        "target": 7,
        "lambda_atp": 0.03,
        "lambda_target": 0.5,
        "count": "soft",
        "gate": "soft",
    }
    pruner = build("atp_llava", shape_of(patches=16), **settings).train()
    assert pruner.loss() is None, "nothing was seen yet"
    first = pruner(2, tokens)
    assert pruner.loss() is None, "the second module has not been asked"
    second = pruner(5, tokens)
    image = tokens.layout.is_image
    counts = [float((gate * image).sum().detach()) / 2 for gate in (first, first * second)]
    mean = (2 * 12.5 + 3 * counts[0] + 3 * counts[1]) / 8
    expected = 0.03 * (counts[0] / 16 * 2 + counts[1] / 16 * 5) + 0.5 * abs(mean - 7)
    assert float(pruner.loss().detach()) == pytest.approx(expected, rel=1e-5)
    assert float(pruner.mean_count().detach()) == pytest.approx(mean, rel=1e-5)
    pruner.settings = replace(pruner.settings, average="modules")
    assert float(pruner.mean_count().detach()) == pytest.approx(sum(counts) / 2, rel=1e-5)


def test_straight_through_counts_what_inference_would_keep() -> None:
    tokens = make_tokens((16, 16), after=(3, 5))
    soft, hard = (
        build("atp_llava", shape_of(patches=16), layers=[2, 5], count=count, gate="soft").train()
        for count in ("soft", "straight_through")
    )
    for pruner in (soft, hard):
        for layer, at in ((2, (0.2, 0.9)), (5, (0.5, 0.9))):
            set_thresholds(pruner, layer, *at)
            pruner(layer, tokens)
    counts = [{layer: float(count.detach()) for layer, count in pruner._counts.items()} for pruner in (soft, hard)]
    grads = [torch.autograd.grad(p.mean_count(), p.modules_before["2"].redundant.bias)[0] for p in (soft, hard)]
    assert grads[0] < 0 and torch.equal(*grads), (
        "a higher threshold leaves fewer tokens, and the gradient is that of the soft count"
    )
    inference = [int(count.sum()) / 2 for count in run(hard.eval(), tokens)]
    assert counts[1][2] == inference[2] and counts[1][5] == pytest.approx(
        inference[5], abs=2
    )  # gates weigh what is scored next
    assert counts[0][2] != pytest.approx(inference[2], abs=0.1)


def test_a_straight_through_gate_is_what_inference_does_with_the_soft_masks_gradient() -> None:
    """Open or closed, and once closed by the first module that drops; what stays is moved as its soft mask would be."""
    tokens = make_tokens((16, 16), after=(3, 5))
    soft, hard = (
        build("atp_llava", shape_of(patches=16), layers=[2, 5], gate=gate).train()
        for gate in ("soft", "straight_through")
    )
    gates = {}
    for pruner in (soft, hard):
        for layer, at in ((2, (0.4, 0.9)), (5, (0.6, 0.9))):
            set_thresholds(pruner, layer, *at)
            gates[pruner, layer] = pruner(layer, tokens)
    image, first = tokens.layout.is_image, gates[hard, 2]
    passes = gates[soft, 2] > 0.5
    assert torch.equal(first, torch.where(passes | ~image, 1.0, LEAST_WEIGHT)) and 0 < passes[image].sum() < image.sum()
    assert (gates[hard, 5][~passes] == 1).all() and (gates[hard, 5][passes & image] < 1).any()
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    moved = [
        torch.autograd.grad(
            (weights * gates[pruner, 2])[passes & image].sum(), pruner.modules_before["2"].redundant.bias
        )[0]
        for pruner in (soft, hard)
    ]
    assert moved[0].abs() > 0
    torch.testing.assert_close(*moved)


def test_training_answers_as_inference_does() -> None:
    """The model that is trained is the one that is used: at T = 10 a soft gate leaves tokens in sight that inference drops."""
    inputs = rows_of(sample_rows()[1], side="right") | {"pixel_values": pixels(1)}
    off = {}
    for gate in ("straight_through", "soft"):
        model = tiny_model({"decoder": {"name": "atp_llava", "gate": gate}})
        hard = model(**inputs)
        assert hard.logits.shape[1] < inputs["input_ids"].shape[1]
        gated = model.train()(**inputs, use_cache=False)
        off[gate] = float((gated.logits[0, -1] - hard.logits[0, -1]).detach().abs().max())
    assert off["straight_through"] < 1e-3 < 0.1 * off["soft"], off


def trained(block: dict[str, Any] = BLOCK, attn: str = "sdpa", checkpointing: bool = False) -> Any:
    model = tiny_model(block, attn=attn).train()
    model.config.text_config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def labelled(*rows: int) -> dict[str, Tensor]:
    inputs = rows_of(*(sample_rows()[row] for row in rows), side="right")
    answer = torch.zeros_like(inputs["input_ids"]).bool()
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        answer[row, length - 3 : length] = True
    images = sum({0: 1, 1: 1, 2: 0, 3: 2}[row] for row in rows)
    pictures = {"pixel_values": pixels(images)} if images else {}
    return inputs | {"labels": inputs["input_ids"].masked_fill(~answer, IGNORE_INDEX)} | pictures


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    named = model.model.language_model.pruner.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named}


@pytest.mark.parametrize("attn, checkpointing", [("sdpa", False), ("sdpa", True), ("eager", False), ("eager", True)])
def test_the_language_loss_reaches_the_thresholds(attn: str, checkpointing: bool) -> None:
    """Through the gates on keys alone: neither SDPA nor activation checkpointing cuts the way."""
    inputs = labelled(0, 1, 3)
    model = trained(attn=attn, checkpointing=checkpointing)
    found = gradients(model, model(**inputs).loss)
    assert all(grad.abs().sum() > 0 for grad in found.values()) and len(found) == 3 * 6
    reference = trained(attn="eager")
    expected = gradients(reference, reference(**inputs).loss)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-7, rtol=1e-3)


def test_the_gradient_is_that_of_finite_differences() -> None:
    inputs = labelled(0)
    model = trained(
        {"decoder": {"name": "atp_llava", "layers": [2], "target": 10, "gate": "soft"}}
    )  # one module: no later scores hang on its gates
    parameter = model.model.language_model.pruner.modules_before["2"].redundant.bias
    grad = torch.autograd.grad(model(**inputs).loss, parameter)[0].item()
    values = []
    with torch.no_grad():
        for step in (0.05, -0.1):
            parameter += step
            values.append(model(**inputs).loss.item())
    assert grad == pytest.approx((values[0] - values[1]) / 0.1, rel=0.05) and abs(grad) > 1e-5


@pytest.mark.parametrize("through", [False, True])
def test_scores_let_gradients_into_the_language_model_only_where_asked(through: bool) -> None:
    model = trained({"decoder": {"name": "atp_llava", "through_scores": through}})
    model(**labelled(0, 1))
    model.method_loss().backward()
    keys = model.model.language_model.layers[0].self_attn.k_proj.weight.grad
    assert (keys is not None and bool(keys.abs().sum() > 0)) == through


def test_a_batch_without_images_still_reaches_every_module() -> None:
    model = trained()
    loss = model(**labelled(2)).loss
    extra = model.method_loss()
    assert float(extra.detach()) == 0.0
    found = gradients(model, loss + extra)
    assert len(found) == 18 and all(grad.abs().sum() == 0 for grad in found.values())


def test_sharp_masks_equal_dropping() -> None:
    """Training and inference are one algorithm: as T grows, gating becomes dropping."""
    block = {"decoder": {"name": "atp_llava", "temperature": 1e6, "gate": "soft"}}
    inputs = rows_of(sample_rows()[1], side="right") | {"pixel_values": pixels(1)}
    model = tiny_model(block)
    hard = model(**inputs)
    visual = model.model(**inputs).visual
    assert hard.logits.shape[1] < inputs["input_ids"].shape[1]
    soft = model.train()(**inputs, use_cache=False)
    assert soft.logits.shape[1] == inputs["input_ids"].shape[1]
    torch.testing.assert_close(soft.logits[0, -1], hard.logits[0, -1], atol=2e-3, rtol=1e-3)
    assert torch.equal(model.model(**inputs, use_cache=False).visual, visual), "what is said to be kept is what is kept"


def test_counts_differ_between_images_and_between_layers() -> None:
    """Instance-wise and layer-wise: the thresholds are functions of the scores."""
    model = tiny_model(BLOCK)
    inputs = rows_of(*[sample_rows()[0]] * 6) | {"pixel_values": pixels(6)}
    visual = model.model(**inputs).visual  # [6, 4]
    assert (visual[:, 0] == PATCHES).all() and len(set(visual[:, 1].tolist())) > 1
    means = visual.double().mean(dim=0)
    assert means[0] > means[1] > means[2] > means[3]
    thresholds = []
    module = model.model.language_model.pruner.modules_before["1"]
    module.register_forward_hook(lambda _m, _a, out: thresholds.append(torch.cat(out, dim=1)))
    model.model(**inputs)
    assert (thresholds[0].amax(dim=0) > thresholds[0].amin(dim=0)).all()


def test_plain_checkpoints_get_start_values(tmp_path: Any) -> None:
    """T2: parameters that a checkpoint lacks are not left as uninitialised memory; those it has come back."""
    from transformers import AutoModelForImageTextToText

    from llava_prumerge.model.configuration import PruMergeLlavaConfig

    tiny_model().save_pretrained(tmp_path / "plain")
    config = PruMergeLlavaConfig.from_pretrained(
        tmp_path / "plain", reduction={"decoder": {"name": "atp_llava", "start": 0.25}}
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "plain", config=config)
    for name, parameter in model.model.language_model.pruner.named_parameters():
        assert float(parameter.detach().abs().max()) < 0.12 and (bool(parameter.any()) == name.endswith("weight")), name
    thresholds = model.model.language_model.pruner.modules_before["1"](torch.zeros(1, 2 * PATCHES))
    assert [float(threshold.detach()) for threshold in thresholds] == pytest.approx([0.25, 0.25])
    own = tiny_model(BLOCK)
    set_thresholds(own.model.language_model.pruner, 2, 0.3, 0.9)
    own.save_pretrained(tmp_path / "own")
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, parameter in own.model.language_model.pruner.named_parameters():
        assert torch.equal(parameter, dict(again.model.language_model.pruner.named_parameters())[name])


def test_settings_of_the_paper_and_their_fractions() -> None:
    full = build("atp_llava", shape_of(32, 576))
    assert full.layers == (4, 14, 24) and full.target == 144
    told = full.settings
    assert told.temperature == 10 and told.lambda_sample == 3 and (told.lambda_atp, told.lambda_target) == (0.05, 0.2)
    pocket = build("atp_llava", shape_of(6, 144))
    assert pocket.layers == (1, 3, 5) and pocket.target == 36
    with pytest.raises(
        ReductionError, match="88/576' is out of reach: the 1 layers before the first module alone cost 24 "
    ):
        build("atp_llava", shape_of(6, 144), target="88/576")
    assert build("atp_llava", shape_of(6, 144), target="88/576", average="modules").target == 22
    assert build("atp_llava", shape_of(6, 144, reduced=True), target="88/576").target == 22
    assert build("atp_llava", target=27).target == 27


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"target": 0}, "target 0"),
        ({"target": 65}, "target 65.* is not within 0 to 64"),
        ({"target": "half"}, "target 'half' is not a number or a fraction such as 144/576"),
        ({"target": "1/0"}, "target '1/0'"),
        ({"layers": [0, 2]}, "layer 0"),
        ({"layers": [9]}, "layers \\[9\\]"),
        ({"temperature": 0}, "temperature 0"),
        ({"start": 1}, "start 1"),
        ({"strides": [2, 3]}, "strides \\[2, 3\\]"),
        ({"strides": [1, 2]}, "strides \\[1, 2\\]"),
        ({"scale": "max"}, "scale 'max' is not one of minmax, none"),
        ({"count": "both"}, "count 'both'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ReductionError, match=f"atp_llava: .*{word}"):
        build("atp_llava", **settings)


def test_a_grid_that_is_no_square_is_refused() -> None:
    with pytest.raises(ReductionError, match="atp_llava: 60 visual tokens are no square grid"):
        build("atp_llava", shape_of(patches=60))


def test_doubles_of_a_place_and_foreign_tokens_do_no_harm() -> None:
    """Merged tokens that stand for no patch: they are scored, too, and only the spatial score leaves them out."""
    tokens = make_tokens((9, 9), after=(3, 3))
    blank = with_layout(tokens, origin=torch.full_like(tokens.layout.origin, -1))
    keep = build("atp_llava", shape_of(patches=16))(1, blank)
    assert keep.shape == tokens.layout.is_image.shape
    same = tokens_of(
        blank.layout, tokens.hidden, *(part.transpose(1, 2).flatten(2) for part in (tokens.queries(0), tokens.keys(0)))
    )
    assert torch.equal(build("atp_llava", shape_of(patches=16))(1, same), keep)
