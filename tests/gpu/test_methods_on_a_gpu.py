"""Every registered method on a GPU against float32 on the CPU: same tokens, same logits, no hidden synchronisation.

python -m pytest -m gpu tests/gpu            # GPU_TESTS_ON=cpu tries the file out where there is none
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import decoder_tokens
import pytest
import torch
import vision_tokens
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, sample_rows, tiny_model
from torch import Tensor

from llava_prumerge.methods.base import DecoderPruner, DecoderTokens, VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer, discover, fields_of, method_names
from llava_prumerge.ops.layout import IGNORE_INDEX
from llava_prumerge.profiling.kernels import host_waits
from llava_prumerge.profiling.timing import Action

pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
REDUCERS = [name for name in method_names(VisionReducer) if name != "none"]
PRUNERS = method_names(DecoderPruner)
HALVES = [torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
every_half = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["float32", "float16", "bfloat16"])


def block_of(name: str) -> dict[str, Any]:
    if name in REDUCERS:
        return {"vision": {"name": name, "budget": 4}}
    return {"decoder": {"name": name, **({"budget": 12} if "budget" in fields_of(discover()[name]) else {})}}


def calm(model: torch.nn.Module) -> torch.nn.Module:
    """Attention near uniform, so that rounding is not blown up: what is compared is arithmetic, not chaos."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                weight.div_(40 if "vision_tower" in key else 8)
    return model


def inputs_on(device: torch.device) -> dict[str, Tensor]:
    given = rows_of(*sample_rows()) | {"pixel_values": pixels(4)}
    return {key: value.to(device) for key, value in given.items()}


def distance(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    reference = reference.double().cpu()
    return float((ours.double().cpu() - reference).norm() / reference.norm())


def places(reduced: tuple[Tensor, Tensor, Tensor]) -> list[list[int]]:
    """Of each image, the patches that what is left stands for, in order."""
    _, valid, origin = (part.cpu() for part in reduced)
    return [origin[row][valid[row]].tolist() for row in range(len(valid))]


class Chosen:
    """What a model's reducer or pruner was given and said, of the last forward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: list[tuple[Any, Any]] = []
        for module in model.modules():
            if isinstance(module, (VisionReducer, DecoderPruner)):
                module.forward = self.noting(module.forward)  # no hook: methods without parameters are called directly

    def noting(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The same, and note what was given and said."""

        def noted(*given: Any, **named: Any) -> Any:
            self.seen.append((given, forward(*given, **named)))
            return self.seen[-1][1]

        return noted


@every_dtype
@pytest.mark.parametrize("name", [*REDUCERS, *PRUNERS])
def test_logits_are_those_of_float32_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    """Rows whose images kept the same patches; the others chose at a tie of half precision."""
    plain, ours = (calm(tiny_model(block_of(name))) for _ in range(2))
    ours = ours.to(DEVICE, dtype)
    chosen = [Chosen(plain), Chosen(ours)]
    reference, output = plain(**inputs_on(torch.device("cpu"))), ours(**inputs_on(DEVICE))
    assert output.logits.dtype == dtype and output.logits.device.type == DEVICE.type
    same = {0, 1, 2, 3}
    if name in REDUCERS:
        said = [seen.seen[-1][1] for seen in chosen]
        equal = [theirs == mine for theirs, mine in zip(*map(places, said), strict=True)]
        # Merging may give a token to another neighbour at a tie: the same places, and clearly other features.
        near = [distance(mine, theirs) < 3e-2 for theirs, mine in zip(said[0][0], said[1][0], strict=True)]
        equal = [both and close for both, close in zip(equal, near, strict=True)]
        same = {row for row, images in enumerate([[0], [1], [], [2, 3]]) if all(equal[image] for image in images)}
    compared = 0
    for row in sorted(same):
        columns = [found.layout.columns[row][found.layout.key_mask[row]].tolist() for found in (reference, output)]
        if columns[0] != columns[1]:
            continue
        ends = [found.logits[row][found.layout.key_mask[row]] for found in (output, reference)]
        assert distance(*ends) < ROUNDING[dtype], (name, row)
        compared += 1
    assert compared >= (4 if dtype == torch.float32 else 2), "too few rows chose as float32 does"
    assert output.layout.is_image[0].sum() <= PATCHES


def on_device(image: VisionTokens, dtype: torch.dtype, device: torch.device) -> VisionTokens:
    """The same image elsewhere, in another precision."""
    move = lambda value: value.to(device, dtype) if value.is_floating_point() else value.to(device)  # noqa: E731
    queries, keys = map(move, image.projections())
    text, mask = map(move, image.prompt())
    return VisionTokens(
        features=move(image.features),
        grid=image.grid,
        projections=lambda own=False: (queries, keys),
        heads=image.heads,
        prompt=lambda: (text, mask),
        ids=move(image.ids),
        class_token=None if image.class_token is None else move(image.class_token),
    )


@every_half
@pytest.mark.parametrize("block", vision_tokens.blocks(), ids=vision_tokens.label)
def test_a_reducer_keeps_what_float32_keeps_of_the_same_numbers(block: dict[str, Any], dtype: torch.dtype) -> None:
    """The half-precision numbers, scored here and scored in float32 on the CPU; a tie may fall the other way."""
    reducer = build_reducer(block)
    image = vision_tokens.make_tokens(grid=vision_tokens.tower_grid(reducer, (12, 12)), dtype=dtype)
    plain = on_device(image, torch.float32, torch.device("cpu"))
    wanted = places(reducer(plain))
    reduced = reducer.to(DEVICE)(on_device(image, dtype, DEVICE))
    assert reduced[0].dtype == dtype and all(part.device.type == DEVICE.type for part in reduced)
    for row, (theirs, ours) in enumerate(zip(wanted, places(reduced), strict=True)):
        assert len(theirs) == len(ours)
        attention = plain.attention()[row]
        swapped = [sorted(attention[sorted(set(a) - set(b))].tolist()) for a, b in ((theirs, ours), (ours, theirs))]
        assert swapped[0] == pytest.approx(swapped[1], rel=1e-3), "another choice, and not between equals"


def tokens_on(tokens: DecoderTokens, dtype: torch.dtype, device: torch.device) -> DecoderTokens:
    """The same sequences elsewhere, in another precision."""
    layout = tokens.layout
    moved = {part.name: getattr(layout, part.name) for part in fields(layout)}
    moved = {key: value.to(device) for key, value in moved.items() if isinstance(value, Tensor)}
    flat = [part.transpose(1, 2).flatten(2) for part in (tokens.queries(0), tokens.keys(0))]
    return decoder_tokens.tokens_of(replace(layout, **moved), *(p.to(device, dtype) for p in (tokens.hidden, *flat)))


@every_half
@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_keeps_what_float32_keeps_of_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    rounded = tokens_on(decoder_tokens.make_tokens(), dtype, torch.device("cpu"))
    pruner = decoder_tokens.build(name)
    layer = pruner.layers[0]
    wanted = pruner(layer, tokens_on(rounded, torch.float32, torch.device("cpu")))
    said = pruner.to(DEVICE)(layer, tokens_on(rounded, dtype, DEVICE))
    assert said.device.type == DEVICE.type and said.sum(dim=1).tolist() == wanted.sum(dim=1).tolist()
    differ = (said.cpu() != wanted).sum(dim=1)
    assert (differ <= 2).all(), f"{differ.tolist()} tokens of 64 are others; one tie swaps two"


@every_half
@pytest.mark.parametrize("name", [*REDUCERS, *PRUNERS])
def test_batch_equals_single_and_cached_equals_uncached(name: str, dtype: torch.dtype) -> None:
    """Greedy answers of four rows at once, one by one, and without a cache where the method allows one."""
    model = calm(tiny_model(block_of(name))).to(DEVICE, dtype)
    batch = inputs_on(DEVICE)
    how: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    together = model.generate(**batch, **how, eos_token_id=None)
    first = 0
    for row, ids in enumerate(sample_rows()):
        count = ids.count(IMAGE) // PATCHES
        single = {key: value.to(DEVICE) for key, value in rows_of(ids).items()}
        single |= {"pixel_values": batch["pixel_values"][first : first + count]} if count else {}
        first += count
        alone = model.generate(**single, **how, eos_token_id=None)
        for step, (one, all_rows) in enumerate(zip(alone.logits, together.logits, strict=True)):
            assert distance(all_rows[row], one[0]) < 2 * ROUNDING[dtype], (name, row, step)
            if alone.sequences[0, len(ids) + step] != together.sequences[row, batch["input_ids"].shape[1] + step]:
                break  # two words within rounding of each other; from here on the contexts differ
        longer = torch.cat([single["input_ids"], alone.sequences[:, len(ids) : len(ids) + 3]], dim=1)
        mask = torch.ones_like(longer)
        if name in REDUCERS and not model.reads_prompt():  # by the prompt, a longer one is another choice
            again = model(**(single | {"input_ids": longer, "attention_mask": mask}), use_cache=False)
            assert distance(alone.logits[3][0], again.logits[0, -1]) < 2 * ROUNDING[dtype], (name, row)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the CPU does not wait for itself")
@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_waits_once_at_most(name: str) -> None:
    reducer = build_reducer({"name": name, "budget": 20}).to(DEVICE)
    grid = vision_tokens.tower_grid(reducer, (12, 12))
    image = on_device(vision_tokens.make_tokens(grid=grid), torch.float16, DEVICE)
    reducer(image)
    fresh = on_device(vision_tokens.make_tokens(grid=grid), torch.float16, DEVICE)
    waits = host_waits(Action(lambda _: reducer(fresh)), DEVICE)
    print(name, len(waits), waits)
    assert len(waits) <= 1 + reducer.call_limit.waits, waits


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the CPU does not wait for itself")
@pytest.mark.parametrize("name", PRUNERS)
def test_a_decoding_step_waits_once_for_each_stretch(name: str) -> None:
    """As the stock model's step does once, for it asks whether a mask hides anything; a pruner's stretches have own masks."""
    counts = []
    for block in ({}, block_of(name)):
        model = calm(tiny_model(block)).to(DEVICE, torch.float16)
        given = inputs_on(DEVICE)
        with torch.no_grad():
            output = model(**given, use_cache=True)
            cache = output.past_key_values
            mask = torch.cat([given["attention_mask"], given["attention_mask"].new_ones(4, 1)], dim=1)
            step = dict(input_ids=given["input_ids"][:, -1:], attention_mask=mask, past_key_values=cache)
            waits = host_waits(Action(lambda _: model(**step, use_cache=True)), DEVICE)  # noqa: B023
        counts.append(waits)
    print(name, [len(waits) for waits in counts], counts[1])
    stretches = 1 + (len(model.model.language_model.pruner.layers) if name in PRUNERS else 0)
    assert len(counts[0]) <= 1 and len(counts[1]) <= stretches, counts[1]


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus", "pool"])
def test_a_fixed_budget_compiles(name: str) -> None:
    torch.compiler.reset()
    reducer = build_reducer({"name": name, "budget": 20}).eval().to(DEVICE)
    image = on_device(vision_tokens.make_tokens(), torch.float32, DEVICE)

    def reduce(features: Tensor, queries: Tensor, keys: Tensor, ids: Tensor) -> Any:
        moved = lambda own=False: (queries, keys)  # noqa: E731
        return reducer(VisionTokens(features, image.grid, moved, image.heads, ids=ids))

    given = (image.features, *image.projections(), image.ids)
    backend = "inductor" if DEVICE.type == "cuda" else "eager"
    whole = torch.compile(reduce, backend=backend, fullgraph=True)
    for ours, plain in zip(whole(*given), reduce(*given), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@every_half
@pytest.mark.parametrize("name", [*REDUCERS, *PRUNERS])
def test_a_training_step(name: str, dtype: torch.dtype) -> None:
    """Under autocast, as the trainer runs: finite loss near the CPU's, gradients on the GPU."""
    losses = []
    for device, autocast in ((torch.device("cpu"), False), (DEVICE, True)):
        model = calm(tiny_model(block_of(name))).to(device).train()
        given = inputs_on(device)
        hidden = (given["attention_mask"] == 0) | (given["input_ids"] == IMAGE)
        labels = given["input_ids"].masked_fill(hidden, IGNORE_INDEX)
        with torch.autocast(device.type, dtype, enabled=autocast):
            loss = model(**given, labels=labels).loss
        loss.backward()
        gradients = [part.grad for part in model.parameters() if part.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "hybrid"])
@pytest.mark.parametrize("name", ["no method", "prumerge", "fastv"])
def test_other_caches_give_the_same_answers(name: str, implementation: str) -> None:
    """The static cache, which transformers compiles for on a GPU, without a method; with one it is refused in our words."""
    if DEVICE.type == "cpu" and implementation == "offloaded":
        pytest.skip("nothing to offload from")
    model = tiny_model({} if name == "no method" else block_of(name)).to(DEVICE)
    how: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    plain = model.generate(**inputs_on(DEVICE), **how)
    if implementation == "static" and name != "no method":
        with pytest.raises(ValueError, match="not available with a reduction"):
            model.generate(**inputs_on(DEVICE), **how, cache_implementation=implementation)
        return
    assert torch.equal(model.generate(**inputs_on(DEVICE), **how, cache_implementation=implementation), plain)
