"""The trainer's own parts: what a step computes, how a run continues, what a dry run tells, which inputs are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.assembly import build_trainer
from llava_prumerge.train.run import main


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """All weights a run saved in its own folder."""
    return {f"{file.name}/{k}": v for file in sorted(run.glob("*.safetensors")) for k, v in load_file(file).items()}


def interrupt(run: Path, step: int) -> None:
    """Bring a finished run into the state it had just after a checkpoint."""
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    for file in [*run.glob("*.safetensors"), run / "finished.json"]:
        file.unlink()


@pytest.mark.parametrize(("stage", "steps"), [("projector", 6), ("lora", 12), ("full", 6)])
def test_resume_equals_the_straight_run_bitwise(world, tmp_path, stage, steps) -> None:
    # Twelve steps of 4 are two epochs of the 24 records: the order must continue across the boundary, too.
    run = tmp_path / "run"
    recipe = [*world.recipe(stage, run, max_steps=steps, save_steps=steps // 3), world.prumerge_plus]
    assert main(recipe) == 0
    weights, losses = weights_of(run), losses_of(run)
    assert len(losses) == steps and len(set(losses)) == steps
    for stop in (steps // 3, 2 * steps // 3):
        interrupt(run, stop)
        assert main(recipe) == 0
        assert losses_of(run) == losses
        again = weights_of(run)
        assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_finished_run_is_not_repeated(world, tmp_path, capsys) -> None:
    recipe = world.recipe("projector", tmp_path / "run", max_steps=1)
    assert main(recipe) == 0 and main(recipe) == 0
    assert "this run has ended; nothing to do" in capsys.readouterr().out
    assert main([*recipe, "resume=none"]) == 2
    assert not (tmp_path / "run" / "merged").exists()
    assert main([*recipe, "merge=true"]) == 0 and (tmp_path / "run" / "merged" / "model.safetensors").exists()


def test_a_run_killed_while_it_saved_takes_no_step_too_many(world, tmp_path) -> None:
    run = tmp_path / "run"
    recipe = world.recipe("lora", run, max_steps=4, save_steps=2)  # within the first epoch of six
    assert main(recipe) == 0
    weights, losses = weights_of(run), losses_of(run)
    interrupt(run, 4)
    assert main(recipe) == 0
    assert losses_of(run) == losses and json.loads((run / "finished.json").read_text())["steps"] == 4
    again = weights_of(run)
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_accumulation_does_not_change_a_step(world, tmp_path) -> None:
    """Answers differ in length by a factor of seven: a mean of means would be another loss."""
    weights, losses = [], []
    for per_device in (4, 2, 1):
        run = tmp_path / str(per_device)
        recipe = world.recipe("full", run, per_device_batch=per_device, max_steps=3, projector_lr=None)
        assert main([*recipe, world.prumerge_plus]) == 0
        weights.append(weights_of(run))
        losses.append(losses_of(run))
    for other_weights, other_losses in zip(weights[1:], losses[1:], strict=True):
        assert other_losses == pytest.approx(losses[0], rel=1e-5)
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other_weights[name], tensor, rtol=1e-4, atol=2e-5)


def test_activation_checkpointing_changes_nothing(world, tmp_path) -> None:
    runs = [tmp_path / name for name in ("off", "on")]
    for run in runs:
        recipe = world.recipe("lora", run, activation_checkpointing=run.name == "on", max_steps=3)
        assert main([*recipe, world.prumerge_plus]) == 0
    first, second = map(weights_of, runs)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert losses_of(runs[0]) == pytest.approx(losses_of(runs[1]), rel=1e-6)


def test_bf16_is_near_float32(world, tmp_path) -> None:
    runs = [tmp_path / name for name in ("fp32", "bf16")]
    for run in runs:
        recipe = world.recipe(
            "projector", run, precision=run.name, reduction={"vision": {"name": "uniform", "budget": 4}}
        )
        assert main(recipe) == 0
    assert losses_of(runs[0]) != losses_of(runs[1])
    assert losses_of(runs[0]) == pytest.approx(losses_of(runs[1]), rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(runs[1]).values())


def test_the_methods_own_loss_joins_the_step(world, tmp_path, monkeypatch) -> None:
    trainer = build_trainer(load_arguments(world.recipe("projector", tmp_path / "run")))
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    trainer.current_gradient_accumulation_steps = 4
    count = (batch["labels"][:, 1:] != -100).sum()

    def loss() -> float:
        return trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).item()

    plain = loss()
    monkeypatch.setattr(trainer.model, "method_loss", lambda: torch.tensor(2.0))
    assert loss() == pytest.approx(plain + 0.5), "a mean over four micro-batches adds a quarter of each"
    mean = trainer.model(**{name: value for name, value in batch.items() if name != "ids"}).loss
    assert plain == pytest.approx(mean.item(), rel=1e-6), "the count must be that of the shifted labels"


def test_steps_follow_llavas_order(world, tmp_path) -> None:
    trainer = build_trainer(load_arguments(world.recipe("lora", tmp_path / "run")))
    lengths = trainer.train_dataset.lengths
    order = list(trainer.get_train_dataloader().batch_sampler.sampler)
    assert sorted(order) == list(range(24))
    signs = [{lengths[i] > 0 for i in order[start : start + 4]} for start in range(0, 24, 4)]
    assert sum(len(sign) == 1 for sign in signs) >= 5, "all but the last step hold one modality"
    trainer.sampler.set_epoch(1)
    assert list(trainer.sampler) != order


def test_a_dry_run_tells_what_would_happen(world, tmp_path, capsys) -> None:
    assert main([*world.recipe("lora", tmp_path / "run"), world.prumerge_plus, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "stage lora, method prumerge_plus" in text and "lr 1.0e-03" in text and "lr 5.0e-04" in text
    assert "records 24" in text and "16 with images, 8 text only" in text
    assert "steps 6: batch 4 = 2 x 1 ranks x 2 accumulation; cosine, 1 warm-up steps" in text
    assert not (tmp_path / "run").exists()
    trainer = build_trainer(load_arguments([*world.recipe("lora", tmp_path / "run"), world.prumerge_plus]))
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert f"{trained / 1e3:.2f}k of {sum(p.numel() for p in trainer.model.parameters()) / 1e3:.2f}k" in text


def test_a_dry_run_at_full_size_has_the_published_counts(world, tmp_path, capsys) -> None:
    """LLaVA-1.5 7B from configurations alone: 319.8M in adapters of rank 128, 20.98M in the projector."""
    from transformers import CLIPVisionConfig, LlamaConfig

    language, vision = tmp_path / "lm", tmp_path / "clip"
    shutil.copytree(world.folder / "lm", language, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    shutil.copytree(world.folder / "clip", vision, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    LlamaConfig(vocab_size=32000).save_pretrained(language)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    CLIPVisionConfig(image_size=336, patch_size=14, **sizes).save_pretrained(vision)
    changes = {"language_model": str(language), "vision_tower": str(vision), "lora_rank": 128, "max_length": 2048}
    changes["projector"] = str(tmp_path / "not_here.safetensors")  # this world's is of another size
    assert main([*world.recipe("lora", tmp_path / "run", **changes), world.prumerge_plus, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "319.82M in 448 tensors" in text and "20.97M in 2 tensors" in text and "8.19k in 2 tensors" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": {"vision": {"name": "prunemerge"}}}, "prunemerge"),
        ({"reduction": {"vision": {"name": "prumerge", "budgett": 3}}}, "budgett"),
        ({"template": "vicuna_v7"}, "vicuna_v7"),
        ({"data": "{world}/broken.json"}, "broken.json"),
        ({"data": "{world}/empty.json"}, "empty.json"),
        ({"projector": "{world}/wrong.safetensors"}, "wrong.safetensors"),
        ({"vision_tower": "{world}/hollow"}, "hollow"),
    ],
)
def test_wrong_inputs_end_in_one_line(world, tmp_path, capsys, change, message) -> None:
    from safetensors.torch import save_file

    (world.folder / "broken.json").write_text("[{")
    (world.folder / "empty.json").write_text("[]")
    save_file({"multi_modal_projector.linear_1.weight": torch.zeros(2, 2)}, world.folder / "wrong.safetensors")
    (world.folder / "hollow").mkdir(exist_ok=True)
    shutil.copy(world.folder / "clip" / "config.json", world.folder / "hollow")
    change = {k: v.replace("{world}", str(world.folder)) if isinstance(v, str) else v for k, v in change.items()}
    assert main(world.recipe("lora", tmp_path / "run", **change)) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_real_stage_one_sample_trains(world, tmp_path) -> None:
    sample = Path(__file__).resolve().parents[2] / ".." / "shared" / "llava_pretrain_sample"
    if not sample.is_dir():
        pytest.skip("the sample of LLaVA's stage-1 records is not beside the repository")
    records = next(sample.glob("*.json"))
    changes = {"data": str(records), "images": str(sample / "images"), "max_steps": 3, "max_length": 512}
    assert main([*world.recipe("projector", tmp_path / "run", **changes), world.prumerge_plus]) == 0
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)


@pytest.mark.slow
def test_wandb_works_for_a_user_who_is_not_logged_in(world, tmp_path, monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert main(world.recipe("projector", tmp_path / "run", report_to=["wandb"], max_steps=2)) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
