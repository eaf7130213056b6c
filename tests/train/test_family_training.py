"""Training of every family beyond LLaVA-1.5: its processor's inputs, masks on answers, LoRA and full with a method in place."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from train.family_world import METHOD, TRAINED, given, records_of, template_of_family
from train.launching import assert_same_bits, interrupt, losses_of
from transformers import AutoConfig, AutoModelForImageTextToText

from llava_prumerge.data.collator import Collator
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.processed_images import ProcessedImages
from llava_prumerge.model.assembling import processor_of
from llava_prumerge.model.families import family_of
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.part_names import part_names
from llava_prumerge.model.reading import family_template
from llava_prumerge.text.chat_templates import OWN
from llava_prumerge.train import assembly
from llava_prumerge.train.run import main

every = pytest.mark.parametrize("name", TRAINED)
ALIKE = ("llava_next_video", "llava_onevision", "qwen2_vl", "qwen3_vl", "smolvlm")
"""Share what trains with a family that is tried each time; these run with `-m slow`."""
trained = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in TRAINED]
)


def dataset_of(families: Path, name: str) -> LlavaDataset:
    config = AutoConfig.from_pretrained(families / name)
    processor = processor_of(families / name, config)
    return LlavaDataset(
        records_of(families, name), families / "images", processor.tokenizer,
        ProcessedImages(processor, family_of(name).beside), family_template(OWN, processor, config), image_token_id=config.image_token_id, image_tokens=10,
    )  # fmt: skip


def stock_inputs(families: Path, dataset: LlavaDataset, name: str, index: int) -> dict[str, Any]:
    """A record as the stock processor makes it, with transformers' mask of what the model says."""
    processor, record, parts = dataset.preprocessor.processor, dataset.rows[index], []
    if name == "paligemma":
        return stock_pair(families, processor, record)
    images = [Image.open(families / "images" / path).convert("RGB") for path in record["image"]]
    for turn in record["conversations"]:
        shown = images if "<image>" in turn["value"] else []
        text = {"type": "text", "text": turn["value"].replace("<image>\n", "")}
        content = [*({"type": "image", "image": image} for image in shown), text]
        parts.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    return processor.apply_chat_template(
        parts, chat_template=template_of_family(name, marked=True), tokenize=True, return_dict=True, return_tensors="pt",
        return_assistant_tokens_mask=True,
    )  # fmt: skip


def stock_pair(families: Path, processor: Any, record: dict[str, Any]) -> dict[str, Any]:
    """The same of a question and an answer, as PaliGemma's processor takes them; it takes no text without an image."""
    question, answer = (turn["value"] for turn in record["conversations"])
    images = [Image.open(families / "images" / path).convert("RGB") for path in record["image"]]
    if images:
        text = question.replace("<image>\n", "<image>")
        made = dict(processor(text=[text], images=[images], suffix=[answer], return_tensors="pt"))
        return made | {"assistant_masks": made.pop("labels") != -100}
    pair = [processor.tokenizer(text).input_ids for text in (f"<s>{question}\n", f"{answer}</s>")]
    types = torch.tensor([[0] * len(pair[0]) + [1] * len(pair[1])])
    return {"input_ids": torch.tensor([sum(pair, [])]), "assistant_masks": types, "token_type_ids": types}


@every
def test_items_are_what_the_stock_processor_makes(families: Path, name: str) -> None:
    dataset = dataset_of(families, name)
    for index in range(len(dataset)):
        item, stock = dataset[index], stock_inputs(families, dataset, name, index)
        assert item["input_ids"].tolist() == stock["input_ids"][0].tolist()
        own = torch.as_tensor(stock["assistant_masks"])[0].bool()
        assert item["labels"].tolist() == torch.where(own, item["input_ids"], -100).tolist()
        assert own.any() and not own.all()
        for key in set(stock) - {"input_ids", "attention_mask", "assistant_masks"}:
            found = item["pixel_values" if key == "pixel_values_images" else key]
            torch.testing.assert_close(
                found, torch.as_tensor(stock[key])[0] if "token_type" in key else torch.as_tensor(stock[key])
            )
        assert ("pixel_values" in item) == bool(dataset.rows[index]["image"])


@every
@torch.no_grad()
def test_a_batch_is_its_samples(families: Path, name: str) -> None:
    """Losses of samples alone add up to that of the batch, with images of different shapes and a text without."""
    dataset = dataset_of(families, name)
    model, _ = load_model(families / name, reduction=METHOD, device="cpu")
    items, total, count = [dataset[index] for index in range(4)], 0.0, 0
    collate = Collator(dataset.tokenizer.pad_token_id)
    for item in items:
        batch = collate([item])
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        ids = batch.pop("ids")
        total, count = total + float(model(**batch).loss) * tokens, count + tokens
        assert ids == [item["id"]]
    batch = collate(items)
    batch.pop("ids")
    assert float(model(**batch).loss) == pytest.approx(total / count, rel=1e-4)


@every
@torch.no_grad()
def test_loss_without_a_method_is_the_stock_models(families: Path, name: str) -> None:
    """In training mode, where some families make other masks, on the batch that training makes."""
    dataset = dataset_of(families, name)
    batch = Collator(dataset.tokenizer.pad_token_id)([dataset[index] for index in range(4)])
    batch.pop("ids")
    stock = AutoModelForImageTextToText.from_pretrained(families / name)
    model, _ = load_model(families / name, device="cpu")
    assert float(model.train()(**batch).loss) == pytest.approx(float(stock.train()(**batch).loss), rel=1e-6)


@every
def test_text_alone_reaches_the_projector(families: Path, name: str) -> None:
    """Through a blank image, of which some families cut off a part, and with a gradient of zero."""
    dataset = dataset_of(families, name)
    model, _ = load_model(families / name, reduction=METHOD, device="cpu")
    batch = Collator(dataset.tokenizer.pad_token_id)([dataset[2]])
    batch.pop("ids")
    model.train()(**batch).loss.backward()
    role = part_names(model).role
    reached = [value.grad for key, value in model.named_parameters() if role(key) == "projector"]
    assert reached and all(gradient is not None and not gradient.any() for gradient in reached)


@trained
def test_lora_trains_resumes_and_loads(
    world, families: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one batch again and again; stopped in the middle the same bits; the adapter's folder is the model in training."""
    run, trainers = tmp_path / "run", []
    build = assembly.build_trainer
    monkeypatch.setattr(
        assembly, "build_trainer", lambda *args, **more: trainers.append(build(*args, **more)) or trainers[-1]
    )
    recipe = world.recipe("lora", run, **given(families, name), activation_checkpointing=True, lora_dropout=0.05)
    assert main(recipe) == 0
    told = losses_of(run)
    assert all(map(math.isfinite, told)) and told[-1] < told[0] - 0.05
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["equivalent_tokens"] < lines[-1]["kept_mean"], "the pruner has acted"
    shutil.copytree(run, tmp_path / "straight")
    interrupt(run, 2)
    assert main(recipe) == 0
    assert_same_bits(run, tmp_path / "straight")
    dataset = dataset_of(families, name)
    batch = Collator(dataset.tokenizer.pad_token_id)([dataset[index] for index in range(4)])
    batch.pop("ids")
    model, processor = load_model(run, device="cpu")
    assert model.model.reducer.name == "prumerge_plus" and (
        processor.chat_template or template_of_family(name)
    ) == template_of_family(name)
    with torch.no_grad():
        trained = trainers[-1].model.eval()(**batch).logits
        torch.testing.assert_close(model(**batch).logits, trained, rtol=1e-5, atol=1e-5)


@trained
def test_full_trains_all_but_the_towers(world, families: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    assert (
        main(
            world.recipe(
                "full", run, **given(families, name) | {"learning_rate": 2e-3, "max_steps": 4, "save_steps": 0}
            )
        )
        == 0
    )
    told = losses_of(run)
    assert all(map(math.isfinite, told)) and told[-1] < told[0]
    before, _ = load_model(families / name, reduction=METHOD, device="cpu")
    after, _ = load_model(run, device="cpu")
    assert after.config.model_type == f"prumerge_{name}" and after.model.reducer.name == "prumerge_plus"
    role, old = part_names(before).role, dict(before.named_parameters())
    changed = {role(key) for key, value in after.named_parameters() if not torch.equal(value, old[key])}
    assert changed == {"base", "projector"}
