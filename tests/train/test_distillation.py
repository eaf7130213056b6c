"""A method that learns from the full model: the second pass, its loss against loops, what moves, and what is saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llava import IMAGE, pixels, rows_of, sample_rows, stock_twin, tiny_model
from torch import Tensor

from llava_prumerge.methods.base import Method, VisionReducer
from llava_prumerge.methods.registry import discover
from llava_prumerge.model.loading import load_model
from llava_prumerge.ops.layout import IGNORE_INDEX
from llava_prumerge.train.run import main

LEARNERS = [name for name, cls in discover().items() if cls.distils]
every = pytest.mark.parametrize("name", LEARNERS)


def block_of(name: str) -> dict[str, Any]:
    site = "vision" if issubclass(discover()[name], VisionReducer) else "decoder"
    return {site: {"name": name, "budget": 4}}


def learning(name: str) -> tuple[Any, Method]:
    """A tiny model in training of which the method alone trains."""
    model = tiny_model(block_of(name)).train().requires_grad_(False)
    method = model.model.reducer if "vision" in block_of(name) else model.model.language_model.pruner
    method.requires_grad_(True)
    return model, method


def labelled() -> dict[str, Tensor]:
    """Rows with their last three tokens as answers, one of them without an image."""
    inputs = rows_of(*sample_rows(), side="right")
    ends = inputs["attention_mask"].sum(dim=1, keepdim=True)
    place = torch.arange(inputs["input_ids"].shape[1])
    answer = (place < ends) & (place >= ends - 3) & (inputs["input_ids"] != IMAGE)
    labels = inputs["input_ids"].masked_fill(~answer, IGNORE_INDEX)
    return inputs | {"labels": labels, "pixel_values": pixels(4)}


@every
def test_the_loss_is_the_divergence_from_the_full_model_at_the_answers(name: str) -> None:
    """Token by token, the full model being transformers' own; once per supervised token, or as the trainer counts."""
    model, _ = learning(name)
    inputs = labelled()
    full = stock_twin(model)(**inputs).logits
    loss = model(**inputs).loss
    output = model(**inputs)
    total, tokens = 0.0, 0
    for row in range(4):
        own = [at for at in range(1, output.labels.shape[1]) if output.labels[row, at] != IGNORE_INDEX]
        theirs = [at for at in range(1, full.shape[1]) if inputs["labels"][row, at] != IGNORE_INDEX]
        for mine, other in zip(own, theirs, strict=True):
            p, q = full[row, other - 1].softmax(dim=0), output.logits[row, mine - 1].softmax(dim=0)
            total, tokens = total + float((p * (p / q).log()).sum().detach()), tokens + 1
    assert tokens == 12 and total > 1e-3, "the method changes what is answered"
    torch.testing.assert_close(float(loss.detach()), total / tokens, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        float(model(**inputs, num_items_in_batch=24).loss.detach()), total / 24, atol=1e-5, rtol=1e-3
    )


@every
def test_the_second_pass_leaves_no_trace(name: str) -> None:
    """The method is back, nothing of the full pass is counted, and it is not run in inference or beside other training."""
    model, method = learning(name)
    passes = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    model.reduction_stats()
    model(**labelled())
    assert len(passes) == 2 and model.model.reduces
    assert model.reduction_stats()["kept_max"] <= 4 * 2, "of the pass with the method alone"
    assert method in (model.model.reducer, model.model.language_model.pruner)
    with torch.no_grad():
        model(**labelled())
    model.eval()(**labelled())
    assert len(passes) == 4
    model.train().lm_head.requires_grad_(True)
    loss = model(**labelled()).loss
    assert len(passes) == 5
    torch.testing.assert_close(loss, model.eval()(**labelled()).loss, msg="cross-entropy, as of any method")


@every
def test_a_batch_without_images_reaches_the_method_and_teaches_it_nothing(name: str) -> None:
    model, method = learning(name)
    inputs = rows_of(sample_rows()[2])
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    assert model.method_loss() is None
    loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in method.parameters())
    assert abs(float(loss.detach())) < 1e-6


@every
def test_learning_brings_the_answers_nearer_and_moves_the_method_alone(name: str) -> None:
    model, method = learning(name)
    inputs = labelled()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.Adam(method.parameters(), lr=0.02)
    divergences = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model(**inputs).loss
        (loss + 0.0 * model.method_loss()).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1e-2)
        optimiser.step()
        divergences.append(float(loss.detach()))
    assert divergences[-1] < 0.7 * divergences[0], divergences
    own = {f"{prefix}.{key}" for prefix, part in model.named_modules() if part is method for key in method.state_dict()}
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == own


@every
def test_a_stage_of_the_method_alone(name: str, world, tmp_path, logits_of) -> None:
    """By the trainer: everything else is as it was, and the parts saved make the model that was trained."""
    run = tmp_path / "run"
    assert main(world.recipe("method", run, merge=True, reduction=block_of(name), max_grad_norm=0.01)) == 0
    model, processor = load_model(run)
    merged, _ = load_model(run / "merged")
    torch.testing.assert_close(logits_of(model, processor), logits_of(merged, processor), rtol=0, atol=1e-6)
    projector = load_file(run / "mm_projector.safetensors")
    assert projector and all(torch.equal(value, load_file(world.projector())[key]) for key, value in projector.items())
    stored = load_file(run / "method.safetensors")
    assert stored and not (run / "adapter_model.safetensors").exists()
    start = tiny_start(world, block_of(name))
    assert any(not torch.equal(value, start[key]) for key, value in stored.items()), "it has moved"


def tiny_start(world: Any, block: dict[str, Any]) -> dict[str, Tensor]:
    """The method's weights as a run begins."""
    from llava_prumerge.model.adapters import Base

    model, _ = Base(None, str(world.folder / "lm"), str(world.folder / "clip"), seed=42).build(reduction=block)
    return {key.removeprefix("model."): value for key, value in model.state_dict().items()}


def test_a_method_without_weights_cannot_train_alone(world, tmp_path, capsys) -> None:
    recipe = world.recipe("method", tmp_path / "run", reduction={"vision": {"name": "pool", "budget": 4}})
    assert main(recipe) == 2
    assert "stage=method: method pool has no weights of its own that could train" in capsys.readouterr().err
