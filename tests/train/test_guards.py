"""Steps that are not finite: skipped on all ranks, samples named, ended after several; batches without a supervised token."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.assembly import build_trainer
from llava_prumerge.train.guards import StepGuard, TrainingFault, check_finite, poison, suspects
from llava_prumerge.train.run import main
from llava_prumerge.train.trainer import LlavaTrainer


def rows_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def skipped_of(run) -> list[dict]:
    file = run / "skipped.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def spoil(monkeypatch):
    """A function: makes the picture of a sample NaN for as many readings as said."""

    def start(name: str, times: int = 10**6) -> list[str]:
        original, read = LlavaDataset.__getitem__, []

        def get(self, index):
            item = original(self, index)
            if item["id"] == name and len(read) < times:
                read.append(name)
                item["pixel_values"] = item["pixel_values"] * math.nan
            return item

        monkeypatch.setattr(LlavaDataset, "__getitem__", get)
        return read

    return start


def test_a_finite_loss_is_left_alone_and_any_other_spoils_every_gradient() -> None:
    for value in (1.5, math.inf, -math.inf, math.nan):
        weight = torch.tensor(2.0, requires_grad=True)
        loss = poison(weight * 0.5 + (value - 1.0))
        loss.backward()
        assert weight.grad.item() == 0.5 if math.isfinite(value) else math.isnan(weight.grad.item())
        assert loss.item() == value if math.isfinite(value) else not math.isfinite(loss.item())


def test_the_fewest_samples_that_can_be_told_are_named() -> None:
    nan, one = torch.tensor(math.nan), torch.tensor(1.0)
    fine = (["a", "b"], one, torch.tensor([1.0, 2.0]))
    assert suspects([fine, (["c", "d"], nan, torch.tensor([math.nan, 2.0]))]) == (False, ["c"])
    assert suspects([fine, (["c", "d"], nan, torch.tensor([1.0, 2.0]))]) == (False, ["c", "d"])
    assert suspects([fine]) == (True, ["a", "b"])


def test_only_faults_in_a_row_count_towards_the_end(tmp_path) -> None:
    guard = StepGuard(tmp_path, limit=2)
    for step, norm in enumerate((math.nan, 1.0, math.inf, 2.0), start=1):
        guard.watch(["a"], torch.tensor(1.0), None)
        assert guard.judge(norm, step) == math.isfinite(norm)
    guard.judge(math.nan, 5)
    with pytest.raises(TrainingFault, match="2 steps in a row were not finite, up to step 6"):
        guard.judge(math.nan, 6)
    assert [entry["step"] for entry in skipped_of(tmp_path)] == [1, 3, 5, 6]
    guard.start(3)
    assert [entry["step"] for entry in skipped_of(tmp_path)] == [1, 3] and guard.skipped == 2


@pytest.mark.parametrize(("stage", "clip"), [("lora", 0.0), ("full", 1.0)])
def test_a_step_with_a_nan_picture_changes_nothing_but_the_schedule(world, tmp_path, spoil, stage, clip) -> None:
    """Against the same run in which the optimiser is kept from that step by hand."""
    read = spoil("sample-4", times=1)
    run = tmp_path / "run"
    values = {"max_grad_norm": clip, "weight_decay": 0.1, "max_steps": 6, "save_steps": 0}
    trainer = build_trainer(load_arguments(world.recipe(stage, run, **values)))
    before, rates = [], []
    original = trainer.create_optimizer

    def create(*given):
        optimizer = original(*given)
        take = optimizer.step

        def step(*rest, **named):
            weights = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
            moments = sum(len(state) for state in optimizer.state.values())
            take(*rest, **named)
            after = [p for p in trainer.model.parameters() if p.requires_grad]
            before.append(all(torch.equal(a, b) for a, b in zip(weights, after, strict=True)))
            rates.append(optimizer.param_groups[0]["lr"])
            assert not before[-1] or moments in (0, sum(len(state) for state in optimizer.state.values()))

        optimizer.step = step
        return optimizer

    trainer.create_optimizer = create
    trainer.train()
    assert read == ["sample-4"]
    (entry,) = skipped_of(run)
    assert entry["ids"] == ["sample-4"] and entry["not_finite"] == "loss" and entry["step"] < 6
    rows = rows_of(run)
    # Step 1 has rate 0 (warm-up): its weights stand still, too.
    assert [at for at, still in enumerate(before, start=1) if still and rates[at - 1] > 0] == [entry["step"]]
    assert [row["step"] for row in rows if math.isnan(row["loss"])] == [entry["step"]] and len(rows) == 6
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] != entry["step"])
    assert rows[-1]["skipped_steps"] == 1
    straight = tmp_path / "straight"
    trainer = build_trainer(load_arguments(world.recipe(stage, straight, **values)))
    trainer.train()
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in rows_of(straight)]


def test_a_gradient_that_is_not_finite_is_no_step_either(world, tmp_path, monkeypatch) -> None:
    run, calls = tmp_path / "run", []
    original = LlavaTrainer.training_step

    def training_step(self, *given):
        loss = original(self, *given)
        calls.append(loss)
        if len(calls) == 3:  # first pass of the second step
            next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return loss

    monkeypatch.setattr(LlavaTrainer, "training_step", training_step)
    assert main([*world.recipe("lora", run, max_steps=3), world.prumerge_plus]) == 0
    (entry,) = skipped_of(run)
    assert entry["step"] == 2 and entry["not_finite"] == "gradient norm" and len(entry["ids"]) == 4
    assert all(math.isfinite(row["loss"]) for row in rows_of(run))
    for file in run.glob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


def test_several_in_a_row_end_the_run_and_leave_a_sound_checkpoint(world, tmp_path, capsys, monkeypatch) -> None:
    run = tmp_path / "run"
    original = LlavaDataset.__getitem__

    def get(self, index):
        item = original(self, index)
        if "pixel_values" in item and (run / "checkpoint-2").exists():
            item["pixel_values"] = item["pixel_values"] * math.nan
        return item

    monkeypatch.setattr(LlavaDataset, "__getitem__", get)
    recipe = world.recipe("projector", run, save_steps=2, max_skipped_steps=2)
    assert main(recipe) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "2 steps in a row were not finite, up to step 4" in errors[0] and "sample-" in errors[0]
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.setattr(LlavaDataset, "__getitem__", original)
    assert main(recipe) == 0 and not skipped_of(run), "steps that are repeated are no longer counted as skipped"


def test_a_batch_without_a_supervised_token_is_refused_with_its_samples(world, tmp_path, capsys, monkeypatch) -> None:
    original, calls = LlavaDataset.__getitem__, []

    def get(self, index):
        item = original(self, index)
        calls.append(item["id"])
        if len(calls) > 4:  # the second step and all after it
            item["labels"] = torch.full_like(item["labels"], -100)
        return item

    monkeypatch.setattr(LlavaDataset, "__getitem__", get)
    assert main([*world.recipe("lora", tmp_path / "run"), world.prumerge_plus]) == 1
    error = capsys.readouterr().err
    assert "step 2: no token of the batch carries loss; samples" in error and calls[4] in error


def test_one_pass_without_a_supervised_token_is_no_fault(world, tmp_path, monkeypatch) -> None:
    original, calls = LlavaDataset.__getitem__, []

    def get(self, index):
        item = original(self, index)
        calls.append(index)
        if len(calls) in (3, 4):  # the second pass of the first step
            item["labels"] = torch.full_like(item["labels"], -100)
        return item

    monkeypatch.setattr(LlavaDataset, "__getitem__", get)
    assert main([*world.recipe("lora", tmp_path / "run", max_steps=2), world.prumerge_plus]) == 0
    assert all(math.isfinite(row["loss"]) for row in rows_of(tmp_path / "run"))


def test_weights_are_looked_at_before_they_are_stored() -> None:
    model = torch.nn.Linear(2, 2)
    check_finite(model)
    model.bias.data[0] = math.inf
    with pytest.raises(TrainingFault, match="bias holds values"):
        check_finite(model)
    model.bias.requires_grad_(False)
    check_finite(model)


def test_a_method_that_refuses_a_picture_names_the_samples(world, tmp_path, capsys, spoil) -> None:
    """PruMerge does not choose among tokens that are NaN."""
    spoil("sample-4")
    assert main([*world.recipe("projector", tmp_path / "run"), world.prumerge_plus]) == 2
    error = capsys.readouterr().err
    assert "hold NaN or infinity" in error and "sample-4" in error and error.count("error: ") == 1
