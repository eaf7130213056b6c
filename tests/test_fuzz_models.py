"""Damaged and odd recipe values, adapter folders and chat templates: an error of one line, or what stands there."""

from __future__ import annotations

import json
import math
import random
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import ODD, bend, outcome, spoil

from llava_prumerge.text.templates import chat_template
from llava_prumerge.train.arguments import TrainArguments, load_arguments

VICUNA = chat_template("vicuna_v1").strip()
NUMBERS = (math.nan, -math.inf, 1e400, -1e-9, 10**19, 10**400, 2**63, "0x10", "1e3", "1_000", "٣", "1,5", "True", "- 1")
RECIPE = {"stage": "lora", "learning_rate": 2e-4, "reduction": {"vision": {"name": "prumerge", "iqr_factor": 1.5}}}


def test_recipe_values(tmp_path: Path) -> None:
    """What is taken has the type of its setting and a value that a run can use."""
    draw, path, taken = random.Random(8), tmp_path / "recipe.yaml", 0
    hints = typing.get_type_hints(TrainArguments)
    for _ in range(250):
        key, value = draw.choice(list(hints)), draw.choice([*ODD, *NUMBERS])
        path.write_text(yaml.safe_dump(RECIPE | {key: value}, allow_unicode=True))
        found = outcome(lambda: load_arguments([str(path)]))
        if found is None:
            continue
        taken += 1
        read = getattr(found, key)
        assert read is None or isinstance(read, bool | int | float | str | list | dict), (key, value, read)
        if isinstance(read, int | float):
            assert math.isfinite(read) and isinstance(read, bool) == (hints[key] is bool), (key, value, read)
            assert isinstance(value, bool) or float(value) == read, (key, value, read)
    assert 20 < taken < 200


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder of projector, method and adapters, and its base, already built once."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tiny_llava import tiny_model, write_processor

    from llava_prumerge.model.adapters import Base, save_adapter
    from llava_prumerge.train.stages import LORA_TARGETS

    root = tmp_path_factory.mktemp("adapter")
    tiny_model().save_pretrained(root / "base")
    write_processor(root / "base")
    base = Base(model=str(root / "base"))
    model, processor = base.build(reduction={"decoder": {"name": "atp_llava"}})
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=LORA_TARGETS))
    torch.manual_seed(0)
    words = ("lora_", "projector", "pruner")
    state = {
        name: value.detach().normal_(0, 0.1).clone()
        for name, value in wrapped.named_parameters()
        if any(word in name for word in words)
    }
    save_adapter(wrapped, root / "lora", state, base, processor)
    return root / "lora", outputs(root / "lora")


def outputs(folder: Path) -> Any:
    from tiny_llava import rows_of

    from llava_prumerge.model.loading import load_model

    model, _ = load_model(folder, device="cpu")
    return model(**rows_of([1, 5, 6, 7, 8])).logits


TEXTS = ("base.json", "config.json", "adapter_config.json", "tokenizer_config.json", "processor_config.json")
WEIGHTS = ("adapter_model.safetensors", "mm_projector.safetensors", "method.safetensors")


def test_adapter_folders(adapter: tuple[Path, Any], tmp_path: Path) -> None:
    """What loads is a model that answers; of weights that were cut or grew nothing loads."""
    import torch

    whole, expected = adapter
    draw = random.Random(9)
    for number in range(60):
        folder = tmp_path / "copy" / "lora"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(whole.parent, folder.parent)
        name = draw.choice(TEXTS if number % 3 else WEIGHTS)
        content = (folder / name).read_bytes()
        if name in TEXTS and number % 2:
            (folder / name).write_text(json.dumps(bend(json.loads(content), draw)))
        else:
            (folder / name).write_bytes(spoil(content, draw))
        found = outcome(lambda: outputs(folder))  # noqa: B023 (it runs at once)
        assert found is None or found.isfinite().all(), (number, name)
        if name in WEIGHTS and (folder / name).stat().st_size != len(content):
            assert found is None or torch.equal(found, expected), (number, name)


def test_chat_templates(adapter: tuple[Path, Any], tmp_path: Path) -> None:
    """What is taken is the text that stands there, and renders; Jinja that is none is found when the processor is read."""
    from transformers import AutoConfig

    import llava_prumerge
    from llava_prumerge.model.processors import load_processor

    llava_prumerge.register()
    draw, taken = random.Random(10), 0
    folder = Path(shutil.copytree(adapter[0], tmp_path / "lora"))
    config = AutoConfig.from_pretrained(folder)
    (folder / "chat_template.json").unlink()  # transformers would read that one
    file = folder / "chat_template.jinja"
    whole = file.read_bytes()
    for _ in range(60):
        file.write_bytes(spoil(whole, draw))
        found = outcome(lambda: load_processor(folder, config))
        if found is not None:
            taken += 1
            assert found.chat_template.strip() in (file.read_text("utf-8-sig").strip(), VICUNA)
    assert 5 < taken < 55
    for text in (
        "{{",
        "{% for x in %}",
        "{% if %}",
        "{% nonsense %}",
        "{{ '" + "(" * 5000 + "' }",
        "{{ 1 | no_such }}",
    ):
        file.write_text(text)
        assert outcome(lambda: load_processor(folder, config)) is None, text[:20]
