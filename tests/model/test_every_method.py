"""What is asked of every registered method, inside the model: found by walking the registry, nothing is named here twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, sample_rows, tiny_model
from transformers import AutoConfig, AutoModelForImageTextToText
from vision_tokens import make_tokens, tower_grid

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, VisionReducer
from llava_prumerge.methods.registry import build_pruner, build_reducer, discover, fields_of, method_names
from llava_prumerge.methods.resolve import method_files, read_method_file
from llava_prumerge.model.stretch import ReducedCache
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import IGNORE_INDEX

REDUCERS = [name for name in method_names(VisionReducer) if name != "none"]
PRUNERS = method_names(DecoderPruner)
LEFT = 4  # of 16: what every reducer, a resized image too, can leave exactly
BUDGET = 12  # a mean over four layers that every pruner can meet exactly
GREEDY = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, suppress_tokens=[IMAGE])
ROWS = range(4)
OWN_WAYS = ("input_size", "cuts", "tells_sizes", "rewrites", "rewrite", "placed")


def reducer(name: str) -> dict[str, Any]:
    return {"name": name, "budget": LEFT}


def pruner(name: str) -> dict[str, Any]:
    return {"name": name, **({"budget": BUDGET} if "budget" in fields_of(discover()[name]) else {})}


def other_positions() -> dict[str, dict[str, Any]]:
    """Shipped files whose method numbers positions otherwise than by its defaults: they go another way in the model."""
    shape, found = DecoderShape(32, 32, 32, 576), {}
    for name, path in method_files().items():
        block = read_method_file(path)
        for site, part in block.items():
            build = build_reducer if site == "vision" else lambda given: build_pruner(given, shape)
            if len(block) == 1 and build(part).positions != build({"name": part["name"]}).positions:
                sized = {**part, "budget": LEFT if site == "vision" else BUDGET}
                try:
                    build(sized)
                except (
                    ReductionError
                ):  # the rule itself says how many stay: a tiny model's attention may have full rank
                    continue
                found[name] = {site: sized}
    return found


def shapes_of_answers() -> dict[tuple[Any, ...], str]:
    """What a pruner can tell apart of what a reducer leaves, and one reducer that leaves it so.

    Tokens in the order of their patches or in another, tokens that stand for no patch, a site, and a class's own ways with
    the image or the tower.
    """
    found: dict[tuple[Any, ...], str] = {}
    for name in REDUCERS:
        made = build_reducer({"name": name, "budget": LEFT})
        own = tuple(key for key in OWN_WAYS if getattr(type(made), key) is not getattr(VisionReducer, key))
        left: tuple[Any, ...] = ()
        if not made.cuts:  # else the tower has chosen
            origin = made(make_tokens(images=2, grid=tower_grid(made, (12, 12))))[2]
            left = bool((origin.diff(dim=1) > 0).all()), bool((origin < 0).any())
        found.setdefault((made.site, made.reads_prompt, *left, *own), name)
    return found


ALONE = {name: {"vision": reducer(name)} for name in REDUCERS} | {name: {"decoder": pruner(name)} for name in PRUNERS}
ALONE |= other_positions()
# Behind a reducer every pruner by its defaults; before one of each kind of answer, FastV, whose
# budget then counts what the reducer left.
PAIRS = {f"prumerge_plus+{name}": {"vision": reducer("prumerge_plus"), "decoder": {"name": name}} for name in PRUNERS}
PAIRS |= {
    f"{name}+fastv": {"vision": {"name": name, "budget": 8}, "decoder": {"name": "fastv", "layer": 1, "budget": LEFT}}
    for name in shapes_of_answers().values()
}
every = pytest.mark.parametrize("name", ALONE)
every_or_pair = pytest.mark.parametrize("name", [*ALONE, *PAIRS])


def block_of(name: str) -> dict[str, Any]:
    return (ALONE | PAIRS)[name]


def batch_of(side: str = "left") -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows(), side=side) | {"pixel_values": pixels(4)}


def alone(row: int, padding: int = 0) -> dict[str, torch.Tensor]:
    """One row of the batch by itself, with its own images."""
    sequences = sample_rows()
    first = sum(ids.count(IMAGE) // PATCHES for ids in sequences[:row])
    count = sequences[row].count(IMAGE) // PATCHES
    inputs = rows_of(sequences[row])
    if padding:
        blank = torch.zeros(1, padding, dtype=torch.long)
        inputs = {key: torch.cat([blank, value], dim=1) for key, value in inputs.items()}
    return inputs | ({"pixel_values": pixels(4)[first : first + count]} if count else {})


def labelled(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = inputs["input_ids"]
    hidden = (inputs["attention_mask"] == 0) | (ids == IMAGE)
    return inputs | {"labels": ids.masked_fill(hidden, IGNORE_INDEX)}


@every_or_pair
def test_it_reduces(name: str) -> None:
    model = tiny_model(block_of(name))
    output = model.model(**batch_of())
    images = torch.tensor([1, 1, 0, 2])
    assert (output.visual[:, -1] < PATCHES * images)[images > 0].all() and (output.visual[2] == 0).all()
    assert (output.visual[:, 1:] <= output.visual[:, :-1]).all(), "what is gone does not return"
    assert output.last_hidden_state.shape[1] < batch_of()["input_ids"].shape[1]


@pytest.mark.parametrize("name", [*REDUCERS, *(name for name in PRUNERS if "budget" in pruner(name))])
def test_the_budget_is_met_exactly(name: str) -> None:
    """In equivalent tokens of every image, for both contracts."""
    model = tiny_model(block_of(name))
    met = model.model(**batch_of()).visual.double().mean(dim=1) / torch.tensor([1, 1, 1, 2])
    wanted = LEFT if name in REDUCERS else BUDGET
    assert met.tolist() == [wanted, wanted, 0, wanted]
    assert model.reduction_stats()["equivalent_tokens"] == wanted


@every_or_pair
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_single(name: str, side: str) -> None:
    model = tiny_model(block_of(name))
    together, layout = model(**batch_of(side)).logits, model.model(**batch_of(side)).layout
    for row, end in zip(ROWS, layout.last_index(), strict=True):
        torch.testing.assert_close(together[row, end], model(**alone(row)).logits[0, -1], atol=1e-4, rtol=1e-4)


@every
def test_padding_changes_nothing(name: str) -> None:
    model = tiny_model(block_of(name))
    plain, padded = (model(**alone(1, padding)).logits[0, -1] for padding in (0, 5))
    torch.testing.assert_close(plain, padded, atol=1e-5, rtol=1e-4)


@every_or_pair
def test_text_is_untouched(name: str) -> None:
    """All of it reaches the last layer, in order, with the embeddings it came with, unless the method rewrites them.

    What it rewrites is the text of images; text alone stays as it is.
    """
    model, seen = tiny_model(block_of(name)), []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    inputs = batch_of()
    layout = model.model(**inputs).layout
    is_text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    for row in ROWS:
        ended = (layout.key_mask & ~layout.is_image)[row]
        assert torch.equal(layout.columns[row][ended], is_text[row].nonzero()[:, 0])
        if (
            model.model.reducer is not None
            and model.model.reducer.rewrites
            and inputs["input_ids"][row].eq(IMAGE).any()
        ):
            continue
        states = iter(seen[0][row])
        for word in model.get_input_embeddings()(inputs["input_ids"][row][is_text[row]]):
            assert any(torch.equal(word, state) for state in states), "a subsequence of what layer 0 gets"


@every
def test_nothing_is_left_to_the_global_seed(name: str) -> None:
    model = tiny_model(block_of(name))
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outcomes.append(model(**batch_of()).logits)
    assert torch.equal(*outcomes)


@every_or_pair
def test_bfloat16(name: str) -> None:
    model = tiny_model(block_of(name)).to(torch.bfloat16)
    output = model(**labelled(batch_of()))
    assert output.logits.dtype == torch.bfloat16 and output.logits.isfinite().all() and output.loss.isfinite()
    assert model.model(**batch_of()).visual[0, -1] < PATCHES


@every_or_pair
def test_save_and_load_through_the_auto_class(name: str, tmp_path: Path) -> None:
    model = tiny_model(block_of(name))
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert type(again) is type(model) and again.config.reduction == block_of(name)
    assert torch.equal(model(**batch_of()).logits, again(**batch_of()).logits)
    assert torch.equal(again.model(**batch_of()).visual, model.model(**batch_of()).visual)


@every_or_pair
def test_two_training_steps(name: str) -> None:
    """Everything but the tower trains, the method's own parameters included; a batch without images takes part."""
    model = tiny_model(block_of(name)).train()
    model.model.vision_tower.requires_grad_(False).eval()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for inputs in (batch_of("right"), batch_of("left"), rows_of(sample_rows()[2])):
        loss = model(**labelled(inputs), use_cache=False).loss
        extra = model.method_loss()
        (loss if extra is None else loss + extra).backward()
        assert all(value.grad is not None for value in trained.values()), "some rank would wait for another"
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert all(map(torch.isfinite, torch.tensor(losses)))
    still = [key for key, value in trained.items() if torch.equal(value, before[key])]
    assert not still, "these did not move"


@every_or_pair
def test_cached_generation_in_a_batch_equals_each_alone(name: str) -> None:
    model, inputs = tiny_model(block_of(name)), batch_of()
    together = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    for row in (0, 3):
        one = alone(row)
        assert torch.equal(together[row], model.generate(**one, **GREEDY)[0, one["input_ids"].shape[1] :])


@every
def test_beams_and_sampling(name: str) -> None:
    model, inputs = tiny_model(block_of(name)), batch_of()
    start = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, **GREEDY | {"num_beams": 3})[:, start:]
    one = alone(3)
    single = model.generate(**one, **GREEDY | {"num_beams": 3})[0, one["input_ids"].shape[1] :]
    assert torch.equal(beams[3], single)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2, eos_token_id=None)
    assert sampled.shape == (8, start + 4)


def later_turns(name: str) -> set[str]:
    """Of the methods of a block."""
    model = tiny_model(block_of(name)).model
    return {part.later_turns for part in (model.reducer, model.language_model.pruner) if part is not None}


@every_or_pair
def test_a_second_turn_equals_a_fresh_run_of_both_or_is_refused(name: str) -> None:
    """Refused just where the choice depends on the question."""
    model, first = tiny_model(block_of(name)), alone(0)
    cache = ReducedCache(config=model.config.text_config)
    answered = model.generate(**first, **GREEDY, past_key_values=cache)
    history = torch.cat([answered, torch.tensor([[11, 12, 13]])], dim=1)
    inputs = dict(input_ids=history, attention_mask=torch.ones_like(history))
    if "none" in later_turns(name):
        with pytest.raises(ValueError, match="chose .* run all of them afresh"):
            model.generate(**inputs, **GREEDY, past_key_values=cache)
        return
    fresh = model.generate(**inputs, pixel_values=first["pixel_values"], **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, past_key_values=cache), fresh)


@pytest.mark.parametrize("name", REDUCERS)
def test_an_image_in_a_later_turn_equals_a_fresh_run_or_is_refused(name: str) -> None:
    model, cache = tiny_model(block_of(name)), ReducedCache(config=tiny_model().config.text_config)
    turns = [1, 7, 8, 9], [*[IMAGE] * PATCHES, 11, 12, 13]
    model(**rows_of(turns[0]), past_key_values=cache, use_cache=True)
    both = rows_of(turns[0] + turns[1])
    later = rows_of(turns[1]) | {"attention_mask": both["attention_mask"], "pixel_values": pixels(1)}
    if "none" in later_turns(name):
        with pytest.raises(ValueError, match=f"{name} chose .* afresh"):
            model(**later, past_key_values=cache, use_cache=True)
        return
    continued = model(**later, past_key_values=cache, use_cache=True).logits[0, -1]
    torch.testing.assert_close(continued, model(**both, pixel_values=pixels(1)).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_prompt_aware_methods_are_those_that_refuse() -> None:
    made = {name: tiny_model(block_of(name)).model.reducer for name in REDUCERS}
    reading = {name for name, reducer in made.items() if reducer.reads_prompt or reducer.rewrites}
    assert {name for name in REDUCERS if "none" in later_turns(name)} == reading >= {"trsm", "par"}


@pytest.mark.parametrize("name", PAIRS)
def test_the_pruner_of_a_pair_ranks_what_the_reducer_left(name: str) -> None:
    pair = block_of(name)
    both = tiny_model(pair).model(**batch_of())
    reduced = tiny_model({"vision": pair["vision"]}).model(**batch_of())
    assert torch.equal(both.visual[:, 0], reduced.visual[:, 0])
    if pair["decoder"] != {"name": "dart"}:  # whose four image pivots are all that is left of an image here
        assert (both.visual[:, -1] < reduced.visual[:, -1])[0]
    for row in (0, 1, 3):
        left, begun = (one.layout.origin[row][one.layout.is_image[row]].tolist() for one in (both, reduced))
        rest = iter(begun)
        assert all(place in rest for place in left), "a subsequence of what the reducer left"
    if "budget" in pair["decoder"]:
        met = both.visual.double().mean(dim=1) / torch.tensor([1, 1, 1, 2])
        assert (met - torch.tensor([LEFT, LEFT, 0, LEFT])).abs().max() <= 0.5


def learners() -> list[str]:
    """Methods with weights of their own."""
    shape, found = DecoderShape(32, 32, 32, 576), []
    for name in REDUCERS:
        made = build_reducer(reducer(name))
        if type(made).grow is not VisionReducer.grow or any(True for _ in made.parameters()):
            found.append(name)
    return found + [name for name in PRUNERS if any(True for _ in build_pruner({"name": name}, shape).parameters())]


@torch.no_grad()
@pytest.mark.parametrize("name", learners())
def test_a_checkpoint_without_a_methods_weights_starts_them(name: str, tmp_path: Path) -> None:
    """As a method that has to be trained begins: from a model that was trained without it."""
    fresh = tiny_model(block_of(name))
    tiny_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.reduction = block_of(name)
    torch.manual_seed(1)
    started = dict(type(fresh).from_pretrained(tmp_path, config=config).named_parameters())
    own = {key: weight for key, weight in fresh.named_parameters() if "reducer" in key or "pruner" in key}
    assert own
    for key, weight in own.items():
        drawn, begun = weight.std(correction=0) > 0, started[key]
        assert begun.isfinite().all() and begun.abs().max() < 1.5, key
        if drawn and weight.dim() > 1:
            assert 0.01 < begun.std(correction=0) / weight.std(correction=0) < 2, key
        elif not drawn and weight.numel() > 1:
            assert torch.equal(begun, weight), key
