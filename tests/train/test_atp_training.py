"""ATP-LLaVA through the existing training path: what trains, what is saved, and where the number of tokens goes."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_prumerge.model.adapters import load_adapter
from llava_prumerge.model.loading import load_model
from llava_prumerge.train.run import main

BLOCK = {"name": "atp_llava", "target": 6, "layers": [1, 2]}


@pytest.fixture(scope="module")
def method(world):
    """The method's file."""
    path = world.folder / "atp_llava.yaml"
    path.write_text(yaml.safe_dump({"decoder": BLOCK}))
    return str(path)


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_thresholds_train_and_return(world, method, tmp_path, logits_of, stage) -> None:
    """With the language model frozen (stage 1's kind), adapted and tuned."""
    run = tmp_path / "run"
    recipe = world.recipe(stage, run, method_lr=0.02, merge=stage != "full", activation_checkpointing=stage == "lora")
    assert main([*recipe, method]) == 0
    model, processor = load_model(run)
    assert model.config.reduction == {"decoder": BLOCK} and model.model.language_model.pruner.layers == (1, 2)
    weights = dict(model.model.language_model.pruner.named_parameters())
    assert len(weights) == 12 and all(bool(weight.any()) for weight in weights.values()), "biases have left 0"
    visual = model.model(**pictures(world, model, processor)).visual
    assert (visual[:, 0] == 16).all() and (visual[:, -1] < 16).all()
    if stage != "full":
        stored = load_file(run / "method.safetensors")
        assert {name.removeprefix("language_model.pruner.") for name in stored} == set(weights)
        merged, _ = load_model(run / "merged")
        torch.testing.assert_close(logits_of(model, processor), logits_of(merged, processor), rtol=0, atol=1e-6)
        again, _ = load_adapter(run)
        assert all(torch.equal(weights[n], p) for n, p in again.model.language_model.pruner.named_parameters())


def pictures(world, model, processor) -> dict[str, torch.Tensor]:
    """Eight of the world's records as one batch."""
    from llava_prumerge.data.collator import Collator
    from llava_prumerge.data.dataset import LlavaDataset
    from llava_prumerge.data.images import ImagePreprocessor

    dataset = LlavaDataset(
        world.folder / "records.json",
        world.folder / "images",
        processor.tokenizer,
        ImagePreprocessor(processor.image_processor, aspect="pad"),
        "vicuna_v1",
        image_token_id=model.config.image_token_id,
        image_tokens=model.config.image_seq_length,
    )
    items = [dataset[at] for at in range(24) if at % 3]
    batch = Collator(processor.tokenizer.pad_token_id)(items)
    return {name: value for name, value in batch.items() if name not in ("ids", "labels")}


@pytest.mark.parametrize("target, stage", [(7, "lora"), (9, "lora"), (9, "projector")])
def test_training_steers_the_mean_count_to_the_target(world, tmp_path, target, stage) -> None:
    """What inference keeps, averaged over images and layers, is near N_target, and differs from image to image."""
    run = tmp_path / "run"
    block = {"decoder": {**BLOCK, "target": target}}
    recipe = world.recipe(stage, run, reduction=block, method_lr=0.01, max_steps=60, save_steps=60, scheduler="cosine")
    assert main(recipe) == 0
    logged = [line["equivalent_tokens"] for line in metrics(run) if "equivalent_tokens" in line]
    assert len(logged) > 20 and all(0 < value <= 16 for value in logged)
    model, processor = load_model(run)
    visual = model.model(**pictures(world, model, processor)).visual.double().mean(dim=1)
    assert visual.mean().item() == pytest.approx(target, rel=0.1)
    assert visual.max() > visual.min(), "one number for all images is no adaptive method"
