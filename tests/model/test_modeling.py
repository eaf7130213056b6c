"""The model against transformers' own Llava and against itself: batch = single, cached = uncached, dropping = masking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, REDUCTIONS, pixels, rows_of, sample_rows, stock_twin, tiny_config, tiny_model
from transformers import LlavaConfig

from llava_prumerge.methods.base import DecoderPruner, DecoderTokens
from llava_prumerge.methods.registry import build_pruner
from llava_prumerge.model.modeling import decoder_shape
from llava_prumerge.model.placement import ForwardPass
from llava_prumerge.model.stretch import ReducedCache
from llava_prumerge.ops.layout import IGNORE_INDEX

VISION_ONLY = [name for name, block in REDUCTIONS.items() if "decoder" not in block]
DECODER_ONLY = [name for name, block in REDUCTIONS.items() if "vision" not in block]
WITH_PRUNER = [name for name, block in REDUCTIONS.items() if "decoder" in block]


def pruner_of(name: str | None) -> DecoderPruner | None:
    """The pruner of a reduction."""
    config = tiny_config(REDUCTIONS.get(name))
    return build_pruner(REDUCTIONS.get(name, {}).get("decoder"), decoder_shape(config))


QUESTION_FREE = [name for name in WITH_PRUNER if pruner_of(name).later_turns != "none"]


def batch_of(side: str = "left") -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows(), side=side) | {"pixel_values": pixels(4)}


def alone(row: int) -> dict[str, torch.Tensor]:
    """One row of the batch by itself, with its own images."""
    sequences = sample_rows()
    before = sum(s.count(IMAGE) // PATCHES for s in sequences[:row])
    own = sequences[row].count(IMAGE) // PATCHES
    inputs = rows_of(sequences[row])
    return inputs | ({"pixel_values": pixels(4)[before : before + own]} if own else {})


def labels_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = inputs["input_ids"]
    return ids.masked_fill((inputs["attention_mask"] == 0) | (ids == IMAGE), IGNORE_INDEX)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_a_method_it_equals_the_stock_model(attn: str, side: str) -> None:
    model = tiny_model(attn=attn)
    stock = stock_twin(model, attn)
    inputs = batch_of(side)
    real = inputs["attention_mask"].bool()
    ours, theirs = model(**inputs), stock(**inputs)
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], atol=1e-5, rtol=1e-5)
    labels = labels_of(inputs)
    torch.testing.assert_close(
        model(**inputs, labels=labels).loss, stock(**inputs, labels=labels).loss, atol=1e-5, rtol=1e-5
    )
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert len(hidden) == len(stock(**inputs, output_hidden_states=True).hidden_states) == 5


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "uncached"])
def test_generation_without_a_method_equals_the_stock_model(settings: dict[str, Any]) -> None:
    model = tiny_model()
    stock = stock_twin(model)
    # One image a row: older stock models repeat images, not rows, for beams.
    inputs = rows_of(*sample_rows()[:3]) | {"pixel_values": pixels(2)}
    given = dict(max_new_tokens=6, do_sample=False, **settings)
    assert torch.equal(model.generate(**inputs, **given), stock.generate(**inputs, **given))


def test_sampling_without_a_method_equals_the_stock_model() -> None:
    model = tiny_model()
    stock = stock_twin(model)
    outputs = []
    for one in (model, stock):
        torch.manual_seed(5)
        outputs.append(one.generate(**batch_of(), max_new_tokens=6, do_sample=True, temperature=0.9))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_single(name: str, side: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    together = model(**batch_of(side))
    layout = model.model(**batch_of(side)).layout
    ends = layout.last_index()
    for row in range(4):
        single = model(**alone(row)).logits[0, -1]
        torch.testing.assert_close(together.logits[row, ends[row]], single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_every_method_acts_and_layers_hold_what_they_saw(name: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    inputs = batch_of()
    output = model(**inputs, use_cache=True)
    lengths = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
    assert lengths[-1] < inputs["input_ids"].shape[1]
    assert lengths == sorted(lengths, reverse=True)
    assert output.logits.shape[1] == lengths[-1]
    pruner = model.model.language_model.pruner
    stats = model.reduction_stats()
    if pruner is not None:
        seen = stats["layer_tokens"]
        shorter = [layer for layer in range(1, 4) if seen[layer - 1] > seen[layer]]
        assert shorter and set(shorter) <= set(pruner.layers)
    assert stats["images"] == 4 and stats["equivalent_tokens"] < PATCHES
    assert stats["equivalent_tokens"] == pytest.approx(sum(stats["layer_tokens"]) / 4)
    assert stats["equivalent_min"] <= stats["equivalent_tokens"] <= stats["equivalent_max"]
    if "vision" in REDUCTIONS[name]:
        assert stats["kept_mean"] < PATCHES


@pytest.mark.parametrize("name", WITH_PRUNER)
def test_layers_hold_the_visual_tokens_that_are_counted(name: str) -> None:
    """One row alone: keys of a layer are its text and the visual tokens it is said to have seen."""
    model = tiny_model(REDUCTIONS[name])
    inputs = alone(1)
    output = model.model(**inputs, use_cache=True)
    text = int((inputs["input_ids"] != IMAGE).sum())
    held = [layer.keys.shape[-2] - text for layer in output.past_key_values.layers]
    assert held == output.visual[0].tolist() == model.reduction_stats()["layer_tokens"]


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_adaptive_counts_differ_between_images(name: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    kept = model.model.get_image_features(pixels(8)).visual_tokens.kept
    assert len(set(kept.tolist())) > 1


@pytest.mark.parametrize("name", REDUCTIONS)
def test_cached_generation_in_a_batch_equals_each_alone(name: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    inputs = batch_of()
    together = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)[
        :, inputs["input_ids"].shape[1] :
    ]
    for row in range(4):
        one = alone(row)
        single = model.generate(**one, max_new_tokens=8, do_sample=False, eos_token_id=None)[
            0, one["input_ids"].shape[1] :
        ]
        assert torch.equal(together[row], single)


@pytest.mark.parametrize("name", [*VISION_ONLY, *QUESTION_FREE])
def test_cached_generation_equals_uncached(name: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    given = dict(max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**batch_of(), **given), model.generate(**batch_of(), use_cache=False, **given))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_beams_equal_each_alone_and_sampling_runs(name: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    inputs = batch_of()
    start = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False, eos_token_id=None)[:, start:]
    for row in (0, 3):
        one = alone(row)
        single = model.generate(**one, max_new_tokens=5, num_beams=3, do_sample=False, eos_token_id=None)
        assert torch.equal(beams[row], single[0, one["input_ids"].shape[1] :])
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=5, do_sample=True, num_return_sequences=2)
    assert sampled.shape[0] == 8


@pytest.mark.parametrize("name", [name for name in DECODER_ONLY if pruner_of(name).positions == "original"])
def test_dropping_equals_masking_in_the_stock_model(name: str) -> None:
    """Pruned decoding equals a full-length run whose deeper layers mask the dropped keys."""
    model = tiny_model(REDUCTIONS[name])
    inputs = alone(1)
    decoder, length = model.model.language_model, inputs["input_ids"].shape[1]
    original, kept = decoder.pruner.forward, {0: torch.ones(length, dtype=torch.bool)}

    def spy(layer: int, tokens: Any) -> torch.Tensor | None:
        keep = original(layer, tokens)
        if keep is not None:  # a row alone, unreduced: its positions are its places
            places = tokens.layout.position_ids[0][keep[0]]
            kept[layer] = torch.zeros(length, dtype=torch.bool).scatter(0, places, True)
        return keep

    decoder.pruner.forward = spy
    pruned = model(**inputs).logits[0, -1]
    counts = [int(kept[layer].sum()) for layer in sorted(kept)]
    assert len(counts) > 1 and counts == sorted(counts, reverse=True) and counts[-1] < counts[0]
    causal = torch.full((1, 1, length, length), -torch.inf).triu(1)
    stock = stock_twin(model, "eager")
    for index, block in enumerate(stock.model.language_model.layers):
        real = kept[max(layer for layer in kept if layer <= index)]
        mask = causal.masked_fill(~real, -torch.inf).masked_fill(torch.eye(length, dtype=torch.bool), 0.0)
        block.register_forward_pre_hook(
            lambda _m, args, kw, mask=mask: (args, kw | {"attention_mask": mask}), with_kwargs=True
        )
    torch.testing.assert_close(pruned, stock(**inputs).logits[0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_attention_rows_equal_eager_attentions(attn: str) -> None:
    model = tiny_model(attn=attn)
    stock = stock_twin(model, "eager")
    inputs = rows_of(*sample_rows()[:2]) | {"pixel_values": pixels(2)}
    reference = stock(**inputs, output_attentions=True, output_hidden_states=True)
    decoder = model.model.language_model
    layout = ForwardPass().begin(inputs["attention_mask"].bool(), 0)
    rows = torch.stack([layout.last_index(), layout.last_index() - 2], dim=1)
    ours = decoder.layer_projections(1, reference.hidden_states[1], layout).attention(rows)
    expected = reference.attentions[1].gather(2, rows[:, None, :, None].expand(-1, 4, -1, ours.shape[-1]))
    real = layout.key_mask[:, None, None].expand_as(ours)
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cached", [False, True])
def test_a_pruner_sees_the_layers_own_queries_and_keys(cached: bool) -> None:
    """Those of the layer before from its cache or its input, those of the layer itself from its input."""
    model, seen = tiny_model({"decoder": {"name": "fastv", "layer": 2, "keep_ratio": 1.0}}), {}
    decoder, inputs = model.model.language_model, batch_of()

    def ask(layer: int, tokens: DecoderTokens) -> None:
        weight = (
            torch.rand(tokens.layout.key_mask.shape, generator=torch.Generator().manual_seed(2))
            * tokens.layout.key_mask
        )
        for at in (layer - 1, layer):
            queries = tokens.queries(at)
            mean = (queries * weight[:, None, :, None]).sum(dim=2, keepdim=True) / weight.sum(dim=1)[
                :, None, None, None
            ]
            torch.testing.assert_close(tokens.mean_query(at, weight), mean, atol=1e-5, rtol=1e-4)
            last = torch.zeros_like(weight).scatter(1, tokens.layout.last_index()[:, None], 0.5)  # one row, not all
            alone = queries.gather(2, tokens.layout.last_index()[:, None, None, None].expand(-1, 4, -1, 8))
            torch.testing.assert_close(tokens.mean_query(at, last), alone, atol=1e-5, rtol=1e-4)
            assert queries.shape == tokens.keys(at).shape
            seen[at] = tokens.keys(at)
        with pytest.raises(ValueError, match="layers 1 and 2, not about 0"):
            tokens.keys(layer - 2)

    decoder.pruner.forward = ask
    cache = model(**inputs, use_cache=True).past_key_values
    if not cached:
        model(**inputs, use_cache=False)
    real = inputs["attention_mask"].bool()[:, None, :, None].expand(-1, 4, -1, 8)
    for layer, keys in seen.items():
        held = cache.layers[layer].keys.repeat_interleave(2, dim=1)
        torch.testing.assert_close(keys[real], held[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_labels_follow_their_tokens_through_ragged_reduction(name: str) -> None:
    """The loss of the batch is the mean over all supervised tokens of the rows run alone (T8: shift before dropping)."""
    model = tiny_model(REDUCTIONS[name])
    inputs = batch_of("right")
    with torch.no_grad():
        together = model(**inputs, labels=labels_of(inputs)).loss.item()
        total, count = 0.0, 0
        for row in range(4):
            one = alone(row) | {"labels": labels_of(alone(row))}
            supervised = int((model.model(**one).layout.shift_labels != IGNORE_INDEX).sum())
            if name in VISION_ONLY:  # no target is lost, not even that of the last visual token
                assert supervised == int((one["labels"][:, 1:] != IGNORE_INDEX).sum())
            total, count = total + model(**one).loss.item() * supervised, count + supervised
    assert together == pytest.approx(total / count, abs=1e-4)


def test_the_token_before_a_dropped_one_keeps_its_own_target() -> None:
    model = tiny_model(REDUCTIONS["prumerge_budget"])
    inputs = alone(0)
    labels = labels_of(inputs)
    layout = model.model(**inputs, labels=labels).layout
    kept_text = ~layout.is_image[0]
    full = torch.cat([labels[:, 1:], torch.full((1, 1), IGNORE_INDEX)], 1)[0]
    assert torch.equal(layout.shift_labels[0][kept_text], full[inputs["input_ids"][0] != IMAGE])


@pytest.mark.parametrize("name", ["prumerge_plus", *WITH_PRUNER])
def test_bfloat16(name: str) -> None:
    model = tiny_model(REDUCTIONS[name]).to(torch.bfloat16)
    inputs = batch_of()
    output = model(**inputs, labels=labels_of(inputs))
    assert output.logits.dtype == torch.bfloat16 and torch.isfinite(output.loss)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 4


@pytest.mark.parametrize("name", ["prumerge_plus", *WITH_PRUNER])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(REDUCTIONS[name]).train()
        model.config.text_config.use_cache = False
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        inputs = batch_of("right")
        model(**inputs, labels=labels_of(inputs)).loss.backward()
        gradients.append(model.model.multi_modal_projector.linear_1.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_text_only_batch_reaches_every_vision_module_in_training() -> None:
    """T4: a rank without images must still take part in the projector's reductions."""
    model = tiny_model(REDUCTIONS["prumerge_plus"]).train()
    inputs = rows_of(sample_rows()[2])
    loss = model(**inputs, labels=labels_of(inputs), use_cache=False).loss
    loss.backward()
    grad = model.model.multi_modal_projector.linear_1.weight.grad
    assert grad is not None and float(grad.abs().sum()) == 0.0
    with torch.no_grad():
        expected = tiny_model()(**inputs, labels=labels_of(inputs)).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_original_positions_are_the_patches_own() -> None:
    model = tiny_model(REDUCTIONS["prumerge_original"])
    layout = model.model(**alone(1)).layout
    image = layout.is_image[0] & (layout.origin[0] >= 0)
    assert torch.equal(layout.position_ids[0][image], layout.origin[0][image] + 3)
    after = (~layout.is_image[0]).nonzero()[-3:, 0]
    assert layout.position_ids[0][after].tolist() == [3 + PATCHES, 4 + PATCHES, 5 + PATCHES]
    contiguous = tiny_model({"vision": {"name": "prumerge", "iqr_factor": 0.2}}).model(**alone(1)).layout
    assert contiguous.position_ids[0].tolist() == list(range(contiguous.key_mask.shape[1]))


@pytest.mark.parametrize("name", [None, *REDUCTIONS])
def test_a_second_turn_on_the_cache_equals_a_fresh_run_of_both(name: str | None) -> None:
    """Where the question decides what stays, a fresh run would choose anew: that is an error, which says what to do."""
    model = tiny_model(REDUCTIONS.get(name))
    first = alone(0)
    question = torch.randint(3, 90, (1, 5), generator=torch.Generator().manual_seed(9))
    cache = ReducedCache(config=model.config.text_config)
    answered = model.generate(**first, max_new_tokens=3, do_sample=False, eos_token_id=None, past_key_values=cache)
    history = torch.cat([answered, question], dim=1)
    inputs = dict(input_ids=history, attention_mask=torch.ones_like(history))
    again = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    fresh = model.generate(**inputs, pixel_values=first["pixel_values"], **again)
    if name in WITH_PRUNER and name not in QUESTION_FREE:
        with pytest.raises(ValueError, match=f"{REDUCTIONS[name]['decoder']['name']} chose .* afresh"):
            model.generate(**inputs, past_key_values=cache, **again)
    else:
        assert torch.equal(model.generate(**inputs, past_key_values=cache, **again), fresh)


@pytest.mark.parametrize("name", [None, *VISION_ONLY, *WITH_PRUNER])
@pytest.mark.parametrize("begin", ["text", "image"])
def test_an_image_in_a_later_turn(name: str | None, begin: str) -> None:
    """Equal to a fresh run for methods that look at each image, or at nothing; an error for the others."""
    model, pruner = tiny_model(REDUCTIONS.get(name)), pruner_of(name)
    turns = [[1, *([IMAGE] * PATCHES if begin == "image" else []), 7, 8, 9], [*[IMAGE] * PATCHES, 11, 12, 13, 14]]
    count = int(begin == "image")
    cache = ReducedCache(config=model.config.text_config)
    pictures = {"pixel_values": pixels(count)} if count else {}
    model(**rows_of(turns[0]), **pictures, past_key_values=cache, use_cache=True)
    both = rows_of(turns[0] + turns[1])
    later = rows_of(turns[1]) | {"attention_mask": both["attention_mask"], "pixel_values": pixels(count + 1)[count:]}
    if pruner is not None and (pruner.later_turns == "none" or (pruner.later_turns == "text" and count)):
        with pytest.raises(ValueError, match="afresh"):
            model(**later, past_key_values=cache, use_cache=True)
        return
    continued = model(**later, past_key_values=cache, use_cache=True).logits[0, -1]
    torch.testing.assert_close(
        continued, model(**both, pixel_values=pixels(count + 1)).logits[0, -1], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", WITH_PRUNER)
def test_a_conversation_without_images_goes_on(name: str) -> None:
    model = tiny_model(REDUCTIONS[name])
    cache = ReducedCache(config=model.config.text_config)
    model(**rows_of([1, 5, 6, 7]), past_key_values=cache, use_cache=True)
    continued = model(input_ids=torch.tensor([[8, 9]]), past_key_values=cache, use_cache=True).logits[0, -1]
    torch.testing.assert_close(continued, model(**rows_of([1, 5, 6, 7, 8, 9])).logits[0, -1], atol=1e-5, rtol=1e-4)


def test_wrong_numbers_of_placeholders_and_foreign_caches_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="16 image placeholders do not match 2 images"):
        model(**rows_of(sample_rows()[0]), pixel_values=pixels(2))
    from transformers import DynamicCache

    reduced, text = tiny_model(REDUCTIONS["prumerge_plus"]), rows_of(sample_rows()[2])
    cache = DynamicCache()
    model(**text, past_key_values=cache)
    later = rows_of(sample_rows()[0]) | {"pixel_values": pixels(1)}
    with pytest.raises(ValueError, match="DynamicCache with keys of a run without a reduction"):
        reduced(**later, past_key_values=cache)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(pixel_values=pixels(1))
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        reduced(inputs_embeds=torch.zeros(1, 20, 32), pixel_values=pixels(1))


def test_reduction_blocks_are_checked() -> None:
    with pytest.raises(ValueError, match="key 'visoin' is not known; did you mean 'vision'"):
        tiny_config({"visoin": {"name": "prumerge"}})
    with pytest.raises(ValueError, match="'prumrge' is not known; did you mean 'prumerge'. There are:.*prumerge"):
        tiny_model({"vision": {"name": "prumrge"}})
    with pytest.raises(ValueError, match="setting 'budgte' is not known; did you mean 'budget'. There are:.*budget"):
        tiny_model({"vision": {"name": "prumerge", "budgte": 3}})
    with pytest.raises(ValueError, match="layer"):
        tiny_model({"decoder": {"name": "fastv", "layer": 9}})


def test_from_llava_changes_the_model_type() -> None:
    """T6: otherwise the stock class would be built and the method silently dropped."""
    from llava_prumerge.model.configuration import PruMergeLlavaConfig

    config = PruMergeLlavaConfig.from_llava(tiny_config(cls=LlavaConfig), {"vision": {"name": "prumerge"}})
    assert config.model_type == "prumerge_llava" and config.reduction["vision"]["name"] == "prumerge"
