"""Other people's trainers on models with a reduction: transformers' Trainer, PEFT, accelerate, and TRL where it is installed.

make test-trainers runs them, with TRL in an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import (
    IMAGE,
    PATCHES,
    REDUCTIONS,
    pixels,
    rows_of,
    tiny_model,
    write_processor,
)
from torch.utils.data import Dataset
from transformers import AutoProcessor, Trainer, TrainingArguments

from llava_prumerge.ops.layout import IGNORE_INDEX

pytestmark = pytest.mark.trainers
NAMES = ["prumerge_plus", "pair", "atp_llava"]
ROOT = Path(__file__).parents[2]


class Samples(Dataset):
    """Rows of one length: one image and text, the text is learnt."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: int) -> dict[str, Any]:
        words = torch.randint(3, 90, (6 + at % 3,), generator=torch.Generator().manual_seed(at)).tolist()
        return {"row": [1, *[IMAGE] * PATCHES, *words], "pixels": pixels(1, seed=at)}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    inputs = rows_of(*(sample["row"] for sample in samples), side="right")
    hidden = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE)
    labels = inputs["input_ids"].masked_fill(hidden, IGNORE_INDEX)
    return inputs | {"labels": labels, "pixel_values": torch.cat([sample["pixels"] for sample in samples])}


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=5, learning_rate=1e-2, report_to=[], save_strategy="no",
        remove_unused_columns=False, logging_steps=1, use_cpu=True, disable_tqdm=True, **given,
    )  # fmt: skip


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("full_length", [False, True], ids=["own loss", "full length"])
def test_the_plain_trainer_learns(name: str, full_length: bool, tmp_path: Path) -> None:
    model = tiny_model(REDUCTIONS[name]).train()
    model.full_length = full_length
    trainer = Trainer(model, arguments(tmp_path), train_dataset=Samples(), data_collator=collate)
    before = model.model.multi_modal_projector.linear_1.weight.detach().clone()
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] and not torch.equal(
        model.model.multi_modal_projector.linear_1.weight, before
    )
    assert model.reduction_stats()["kept_mean"] <= PATCHES


def test_the_loss_is_the_same_at_either_length() -> None:
    batch = collate([Samples()[at] for at in range(3)])
    for name in ("prumerge_budget", "fastv_first"):
        found = []
        for full_length in (False, True):
            model = tiny_model(REDUCTIONS[name])
            model.full_length = full_length
            output = model(**batch)
            found.append(output.loss)
            loss = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1), output.labels[:, 1:].flatten()
            )
            if name == "prumerge_budget" or not full_length:  # a pruner may drop the token that the first word follows
                torch.testing.assert_close(loss, output.loss)
            assert (output.logits.shape[1] == batch["input_ids"].shape[1]) == full_length
        torch.testing.assert_close(*found)


def test_label_smoothing_takes_logits_at_the_callers_length(tmp_path: Path) -> None:
    """Trainer takes the labels away from the model and computes the loss from logits of the length it knows."""
    model = tiny_model(REDUCTIONS["prumerge_plus"]).train()
    model.full_length = True
    given = arguments(tmp_path, label_smoothing_factor=0.1)
    trainer = Trainer(model, given, train_dataset=Samples(), data_collator=collate)
    batch = collate([Samples()[at] for at in range(2)])
    logits = model(**batch).logits.flatten(0, 1)  # Trainer shifts labels for models with text alone
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected, atol=1e-5, rtol=1e-4)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_peft_trains_its_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(REDUCTIONS["pair"]), LoraConfig(target_modules=r".*language_model.*[qv]_proj"))
    trainer = Trainer(model, arguments(tmp_path, bf16=True), train_dataset=Samples(), data_collator=collate)
    trainer.train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained)
    assert all(0 < loss < 10 for loss in losses(trainer)) and len(losses(trainer)) == 5
    assert all(weight.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_evaluation_with_metrics_sees_logits_and_labels(tmp_path: Path) -> None:
    """Trainer's prediction loop gathers everything in the output but the loss and what the configuration names."""
    model = tiny_model(REDUCTIONS["prumerge_budget"])
    model.full_length = True
    seen = []

    def metrics(found: Any) -> dict[str, float]:
        predictions = found.predictions if isinstance(found.predictions, tuple) else (found.predictions,)
        seen.append((predictions[0].shape, found.label_ids.shape))
        return {}

    given = arguments(tmp_path, per_device_eval_batch_size=2)
    trainer = Trainer(model, given, eval_dataset=Samples(), data_collator=collate, compute_metrics=metrics)
    trainer.evaluate(ignore_keys=["past_key_values", "labels", "layout", "image_hidden_states"])
    assert seen[0][0][:2] == seen[0][1]


SCRIPT = """
import sys, json
sys.path[:0] = {paths!r}
import llava_prumerge
from pathlib import Path
from test_trainers import *
model = tiny_model(REDUCTIONS[{name!r}]).train()
folder = Path({folder!r})
trainer = Trainer(model, arguments(folder, ddp_backend="gloo"), train_dataset=Samples(), data_collator=collate)
trainer.train()
weight = model.model.multi_modal_projector.linear_1.weight
(folder / f"{{trainer.args.process_index}}.json").write_text(json.dumps([weight.sum().item(), trainer.args.world_size, losses(trainer)]))
"""


@pytest.mark.parametrize("name", ["pair", "atp_llava"])
def test_accelerate_launch_on_two_processes(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    script.write_text(SCRIPT.format(paths=paths, name=name, folder=str(tmp_path)))
    words = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", *words.split(), str(script)]
    on_cpu = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | on_cpu)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == second[0] and first[1] == second[1] == 2 and len(first[2]) == 5


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] == 'user' and 'w3 ' or 'w4 ' }}{% for part in m['content'] %}"
    "{{ part['type'] == 'image' and '<image> ' or part['text'] + ' ' }}{% endfor %}{% endfor %}"
)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("name", ["prumerge_plus", "pair"])
@pytest.mark.parametrize("adapters", [False, True], ids=["full", "LoRA"])
def test_trl_fine_tunes_in_five_steps(name: str, adapters: bool, tmp_path: Path) -> None:
    """Its head takes the states of the model without head, and labels of the caller's length."""
    from datasets import Dataset as Rows
    from peft import LoraConfig
    from PIL import Image
    from trl import SFTConfig, SFTTrainer

    write_processor(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    processor.chat_template = TEMPLATE
    processor.tokenizer.pad_token = "</s>"
    turn = lambda role, *parts: {"role": role, "content": list(parts)}  # noqa: E731
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    rows = [
        {
            "images": [Image.new("RGB", (28, 28), (10 * at, 90, 200 - 9 * at))],
            "messages": [
                turn("user", {"type": "image"}, text(f"w{9 + at} w8")),
                turn("assistant", text(f"w{20 + at} w7 </s>")),
            ],
        }
        for at in range(10)
    ]
    model = tiny_model(REDUCTIONS[name]).train()
    model.full_length = True
    settings = SFTConfig(
        str(tmp_path / "out"), per_device_train_batch_size=2, max_steps=5, learning_rate=1e-2, report_to=[], save_strategy="no",
        logging_steps=1, use_cpu=True, bf16=False, max_length=None, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    peft = LoraConfig(target_modules=r".*language_model.*[qv]_proj") if adapters else None
    trainer = SFTTrainer(
        model, settings, train_dataset=Rows.from_list(rows), processing_class=processor, peft_config=peft
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 5 and lines[-1]["loss"] < lines[0]["loss"] and "mean_token_accuracy" in lines[0]
    assert model.reduction_stats()["kept_mean"] < PATCHES
