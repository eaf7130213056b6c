"""Every stage on a LLaVA-1.5 of any served language model and tower, in the chat template of the language model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from decoders import KINDS, TOWERS, write_decoder, write_tower
from safetensors.torch import load_file

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.prompts import make_prompter
from llava_prumerge.evaluation.settings import EvaluationSettings
from llava_prumerge.model.loading import load_model
from llava_prumerge.text.chat_templates import OWN, resolve_template, template_of
from llava_prumerge.train.run import main

PAIRS = [(kind, "clip", "full") for kind in KINDS if kind not in ("llama", "phi3")]
PAIRS += [
    ("llama", "clip", "lora"),
    ("phi3", "clip", "lora"),
    *(("qwen2", tower, "lora") for tower in TOWERS if tower != "clip"),
]
LINEARS = {"phi3": 4}  # q, k and v in one, gate and up in one; elsewhere each by itself


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for kind in KINDS:
        write_decoder(kind, folder / kind)
    for tower in TOWERS:
        write_tower(tower, folder / tower)
    return folder


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("kind", "tower", "stage"), PAIRS)
def test_stages_train_save_and_load(world, parts: Path, tmp_path: Path, kind: str, tower: str, stage: str) -> None:
    """LoRA from the projector of a stage 1 on the same parts, or full from any projector of these widths."""
    given = {"language_model": str(parts / kind), "vision_tower": str(parts / tower), "max_steps": 4, "save_steps": 0}
    given |= {"attention": "eager"} if kind == "gemma2" else {}
    method, run, first = world.prumerge_plus, tmp_path / stage, tmp_path / "projector"
    if stage == "lora":
        assert main([*world.recipe("projector", first, **given), method]) == 0
        given["projector"] = str(first / "mm_projector.safetensors")
    given |= {"template": OWN, "learning_rate": 1e-2, "merge": stage == "lora"}
    assert main([*world.recipe(stage, run, activation_checkpointing=stage == "lora", **given), method]) == 0
    told = losses(run)
    assert all(map(math.isfinite, told)) and min(told[1:]) < told[0]
    found = []
    for folder in (run, run / "merged") if stage == "lora" else (run,):
        model, processor = load_model(folder, device="cpu")
        assert model.model.reducer.name == "prumerge_plus"
        template, config = template_of(processor), model.config
        assert template == resolve_template(OWN, processor) and template.name == OWN
        ends = model.generation_config.eos_token_id
        assert processor.tokenizer.convert_tokens_to_ids(template.end) in (ends if isinstance(ends, list) else [ends])
        text = prompt(template, "What colour is this")
        ids = torch.tensor([encode(processor.tokenizer, text, config.image_token_id, config.image_seq_length)])
        question = Question(id="1", prompt="", text="What colour is this", image="x.png")
        evaluated = make_prompter(processor, config, EvaluationSettings(), None).encode(question)
        assert evaluated == encode(processor.tokenizer, text, config.image_token_id, 1), "asked as it was trained"
        pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        found.append(model(ids, pixels).logits.detach())
        assert model.generate(ids, pixel_values=pixels, max_new_tokens=2).shape[1] > ids.shape[1]
    torch.testing.assert_close(found[0], found[-1], rtol=0, atol=1e-5)
    if stage == "lora":
        assert len(load_file(run / "adapter_model.safetensors")) == 3 * LINEARS.get(kind, 7) * 2


def test_a_system_text_is_trained_and_stored(
    world, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"language_model": str(parts / "qwen2"), "template": OWN, "max_steps": 1, "save_steps": 0}
    model_folder = tmp_path / "start"
    assert main([*world.recipe("projector", model_folder, merge=True, **given | {"template": "plain"})]) == 0
    whole = {"model": str(model_folder / "merged"), "projector": None, "template": OWN, "max_steps": 1, "save_steps": 0}
    assert main([*world.recipe("full", tmp_path / "run", **whole, system="Say the word.")]) == 0
    _, processor = load_model(tmp_path / "run", device="cpu")
    text = prompt(template_of(processor), "What is this")
    assert "system\nSay the word.<|im_end|>" in text and "You are helpful" not in text
    gemma = given | {
        "language_model": str(parts / "gemma2"),
        "projector": str(model_folder / "mm_projector.safetensors"),
    }
    assert main([*world.recipe("lora", tmp_path / "no", **gemma)]) == 2
    assert (
        "attention implementation through torch.nn.functional.scaled_dot_product_attention; take another, such as eager"
        in capsys.readouterr().err
    )
    gemma["attention"] = "eager"
    assert main([*world.recipe("lora", tmp_path / "no", **gemma, system="Say the word.")]) == 2
    assert (
        "has no place for a system text: the chat template refuses it: System role not supported"
        in capsys.readouterr().err
    )
    assert main([*world.recipe("lora", tmp_path / "no", **gemma | {"template": "vicuna_v1"})]) == 2
    assert "'</s>', which is no token of this tokenizer" in capsys.readouterr().err
