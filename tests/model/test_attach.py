"""A reduction on live stock models and off again; without a method the class is the stock one for the caller."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import PATCHES, REDUCTIONS, pixels, rows_of, sample_rows, stock_twin, tiny_config, tiny_model
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StaticCache,
)

from llava_prumerge.model.attach import attach, detach
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.stretch import ReducedCache

REDUCTION = {"vision": {"name": "prumerge_plus", "budget": 5}, "decoder": {"name": "fastv", "layer": 2}}
GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


def stock() -> LlavaForConditionalGeneration:
    return stock_twin(tiny_model())


def batch() -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows()[:2]) | {"pixel_values": pixels(2)}


def one() -> dict[str, torch.Tensor]:
    return rows_of(sample_rows()[0]) | {"pixel_values": pixels(1)}


def test_attach_reduces_and_detach_gives_the_stock_model_back() -> None:
    model = stock()
    parameters, before = dict(model.named_parameters()), model(**batch()).logits
    assert attach(model, REDUCTION) is model
    expected = tiny_model(REDUCTION)
    expected.load_state_dict(stock().state_dict())
    assert torch.equal(model(**batch()).logits, expected(**batch()).logits)
    assert model(**batch()).logits.shape[1] < before.shape[1]
    assert torch.equal(model.generate(**batch(), **GREEDY), expected.generate(**batch(), **GREEDY))
    attach(model, {"vision": {"name": "uniform", "budget": 3}})
    assert model.model.reducer.name == "uniform" and model.model.language_model.pruner is None
    assert detach(model) is model and detach(model) is model
    parts, theirs = ((m, m.model, m.model.language_model, m.config) for m in (model, stock()))
    assert [type(part) for part in parts] == [type(part) for part in theirs]
    assert torch.equal(model(**batch()).logits, before) and not hasattr(model.config, "reduction")
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert set(vars(model)) <= set(vars(stock())) | {"_output_capturing_hooks_installed"}


def test_attach_under_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(
        stock(), LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    ).eval()
    before = model(**batch()).logits
    assert attach(model, REDUCTION) is model
    reduced = model(**batch()).logits
    assert reduced.shape[1] < before.shape[1]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(attach(stock(), REDUCTION), str(tmp_path)).eval()
    assert torch.equal(again(**batch()).logits, reduced)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(**batch()).logits, reduced, atol=1e-5, rtol=1e-4)
    detach(model)
    assert torch.equal(model(**batch()).logits, before)


def test_a_method_with_parameters_starts_where_the_model_is() -> None:
    model = attach(stock().to(torch.float64), REDUCTIONS["atp_llava"])
    pruner = model.model.language_model.pruner
    assert {p.dtype for p in pruner.parameters()} == {torch.float64} and not pruner.training
    assert all(torch.isfinite(p).all() for p in pruner.parameters())


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_are_of_the_same_classes(make: Callable) -> None:
    model = attach(stock(), REDUCTION)
    other = make(model)
    assert type(other) is type(model) and type(other.model) is type(model.model)
    assert other.model.reducer is not model.model.reducer
    assert torch.equal(other(**batch()).logits, model(**batch()).logits)


def test_saved_it_is_a_type_of_its_own_that_stock_transformers_does_not_know(tmp_path: Path) -> None:
    model = attach(stock(), REDUCTION)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "prumerge_llava" and written["reduction"] == REDUCTION
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(again) is type(model) is PruMergeLlavaForConditionalGeneration
    assert torch.equal(again(**batch()).logits, model(**batch()).logits)


def test_checkpoints_of_the_former_type_load(tmp_path: Path) -> None:
    model = tiny_model(REDUCTIONS["pair_atp"])
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "llava_prumerge"}))
    for cls in (AutoModelForImageTextToText, PruMergeLlavaForConditionalGeneration):
        again = cls.from_pretrained(tmp_path)
        assert again.config.model_type == "prumerge_llava" and again.config.reduction == model.config.reduction
        assert all(
            torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
        )


def test_what_cannot_take_a_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="models of type 'llama' are not served; there are: .*llava"):
        attach(LlamaForCausalLM(tiny_config().text_config), REDUCTION)
    with pytest.raises(ValueError, match="a reduction goes on a LlavaForConditionalGeneration"):
        attach(stock().model, REDUCTION)
    with pytest.raises(ValueError, match="is no model of transformers"):
        attach(torch.nn.Linear(2, 2), REDUCTION)
    wrapped = stock()
    wrapped.forward = lambda **given: None
    with pytest.raises(ValueError, match="wrapped by another library"):
        attach(wrapped, REDUCTION)
    several = LlavaForConditionalGeneration(tiny_config(cls=LlavaConfig, vision_feature_layer=[-2, -1]))
    with pytest.raises(ValueError, match=r"vision_feature_layer \[-2, -1\] must be one layer"):
        attach(several, REDUCTION)
    assert attach(several) is several, "without a reducer any stock model is served"


# ---------------------------------------------------------------- without a method: the stock class


CACHES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "none": lambda model: {"use_cache": False},
    "static": lambda model: {"cache_implementation": "static"},
    "dynamic": lambda model: {"cache_implementation": "dynamic"},
    "DynamicCache": lambda model: {"past_key_values": DynamicCache(config=model.config)},
    "StaticCache": lambda model: {"past_key_values": StaticCache(config=model.config, max_cache_len=64)},
    "ReducedCache": lambda model: {"past_key_values": ReducedCache(config=model.config.text_config)},
    "chunks": lambda model: {"prefill_chunk_size": 8},
    "beams": lambda model: {"num_beams": 3},
}


@pytest.mark.parametrize("name", CACHES)
def test_without_a_method_any_cache_serves(name: str) -> None:
    theirs, ours = stock(), attach(stock())
    expected = theirs.generate(**batch(), **GREEDY, **CACHES["dynamic" if name == "ReducedCache" else name](theirs))
    assert torch.equal(ours.generate(**batch(), **GREEDY, **CACHES[name](ours)), expected)


@pytest.mark.parametrize("assistant", ["model", "prompt"])
def test_without_a_method_assisted_decoding_serves(assistant: str) -> None:
    theirs, ours = stock(), attach(stock())
    given = {"assistant_model": stock()} if assistant == "model" else {"prompt_lookup_num_tokens": 2}
    expected = theirs.generate(**one(), **GREEDY)
    assert torch.equal(ours.generate(**one(), **GREEDY, **given), expected)


def test_without_a_method_the_graph_is_whole() -> None:
    theirs, ours = stock(), attach(stock())
    expected = theirs(**batch()).logits
    ours(**batch())  # transformers puts its hooks on the tower the first time hidden states are asked for
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**batch()).logits, expected)


def test_without_a_method_outputs_and_signatures_are_the_stock_ones() -> None:
    theirs, ours = stock(), attach(stock())
    given = batch() | {"labels": batch()["input_ids"]}
    a, b = theirs(**given), ours(**given)
    assert type(a) is type(b) and list(a) == list(b) and torch.equal(a.loss, b.loss)
    assert len(theirs(**given, return_dict=False)) == len(ours(**given, return_dict=False))
    parameters = [list(inspect.signature(model.forward).parameters) for model in (theirs, ours)]
    assert parameters[1][:-1] == [*parameters[0][:-1], "image_index"] and parameters[0][-1] == parameters[1][-1]
    assert ours.reduction_stats()["kept_mean"] == PATCHES


def test_positional_arguments_are_the_stock_ones() -> None:
    given = batch()
    args = given["input_ids"], given["pixel_values"], given["attention_mask"]
    for reduction in (None, REDUCTION):
        model = attach(stock(), reduction)
        assert torch.equal(model(*args).logits, model(**given).logits)
        assert torch.equal(model.model(*args)[0], model.model(**given)[0])


def test_several_feature_layers_serve_without_a_method() -> None:
    config = tiny_config(cls=LlavaConfig, vision_feature_layer=[-2, -1])
    torch.manual_seed(0)
    theirs = LlavaForConditionalGeneration(config).eval()
    expected = theirs(**batch()).logits
    assert torch.equal(attach(theirs)(**batch()).logits, expected)


def test_a_device_map_serves(tmp_path: Path) -> None:
    """Layers that lie on disk come by accelerate's hooks, which hold on to the forward they were put on."""
    from accelerate import dispatch_model

    where = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    where |= {
        f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.1")
    }
    where |= {f"model.language_model.layers.{at}": "disk" for at in (2, 3)}
    expected = attach(stock(), REDUCTION)
    wanted, ids = expected(**batch()).logits, expected.generate(**batch(), **GREEDY)
    model = dispatch_model(stock(), where, main_device="cpu", offload_dir=str(tmp_path))
    attach(model, REDUCTION)
    assert torch.equal(model(**batch()).logits, wanted)
    assert torch.equal(model.generate(**batch(), **GREEDY), ids)
    detach(model)
    assert torch.equal(model(**batch()).logits, stock()(**batch()).logits)


# ---------------------------------------------------------------- with a method: said in our words


REFUSED: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "static": (CACHES["static"], "cache_implementation 'static' is not available with a reduction"),
    "StaticCache": (CACHES["StaticCache"], "a StaticCache; with a reduction layers hold different tokens"),
    "chunks": (CACHES["chunks"], "prefill_chunk_size is not available with a reduction"),
    "prompt": (lambda model: {"prompt_lookup_num_tokens": 2}, "assisted decoding is not available with a reduction"),
    "model": (lambda model: {"assistant_model": stock()}, "assisted decoding is not available with a reduction"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_with_a_method_what_cannot_work_says_so(name: str) -> None:
    model = attach(stock(), REDUCTION)
    given, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        model.generate(**one(), **GREEDY, **given(model))


def test_with_a_method_a_dynamic_cache_becomes_a_reduced_one() -> None:
    model, cache = attach(stock(), REDUCTION), DynamicCache(config=tiny_config().text_config)
    expected = model.generate(**batch(), **GREEDY)
    assert torch.equal(model.generate(**batch(), **GREEDY, past_key_values=cache), expected)
    assert type(cache) is ReducedCache and cache.pruned and cache.reduced
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    assert lengths[0] < batch()["input_ids"].shape[1] and lengths[2] < lengths[1]


def test_text_behind_a_stock_cache_goes_on_as_stock() -> None:
    theirs, ours = stock(), attach(stock(), REDUCTION)
    turns = torch.tensor([[1, 5, 6, 7]]), torch.tensor([[8, 9]])
    held = [DynamicCache(), DynamicCache()]
    for cache in held:
        theirs(input_ids=turns[0], past_key_values=cache)
    later = dict(input_ids=turns[1], labels=turns[1])
    expected, found = theirs(**later, past_key_values=held[0]), ours(**later, past_key_values=held[1])
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
