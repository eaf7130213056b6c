"""base.json: adapters on a base of the same shapes and other weights are refused everywhere; a moved tree and odd files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_llava import rows_of, tiny_model, write_processor

from llava_prumerge.model.adapters import Base, read_base, save_adapter
from llava_prumerge.model.base_file import VARIABLE
from llava_prumerge.model.fingerprint import weights_fingerprint
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.train.stages import LORA_TARGETS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lora` on `base`. Not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    tiny_model().save_pretrained(root / "base")
    write_processor(root / "base")
    base = Base(model=str(root / "base"), seed=3)
    model, processor = base.build()
    model.requires_grad_(False)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=LORA_TARGETS))
    state = {name: value for name, value in wrapped.named_parameters() if "lora_" in name or "projector" in name}
    save_adapter(wrapped, root / "lora", state, base, processor)
    return root


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The tree moved as a whole: base.json's absolute path leads to the original, the relative one to the copy."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def swap(base: Path) -> None:
    """Another base of the same shapes."""
    torch.manual_seed(11)
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(base)


def test_a_swapped_base_is_refused_and_can_be_accepted(copy: Path, monkeypatch, caplog) -> None:
    words = rows_of([1, 5, 6, 7, 8])
    before = load_model(copy / "lora")[0](**words).logits
    swap(copy / "base")
    with pytest.raises(
        LoadingError, match=rf"lora: its weights belong to another base .*base has changed .*{VARIABLE}=1"
    ):
        load_model(copy / "lora")
    monkeypatch.setenv(VARIABLE, "1")
    after = load_model(copy / "lora")[0](**words).logits
    assert not torch.equal(before, after) and "accepted: " in caplog.text


def test_other_files_of_the_base_may_change_and_a_folder_that_does_not_say_is_taken(copy: Path) -> None:
    (copy / "base" / "notes.json").write_text("{}")
    (copy / "base" / "README.md").write_text("mine")
    assert read_base(copy / "lora").model == str(copy / "lora" / "../base")
    file = copy / "lora" / "base.json"
    content = json.loads(file.read_text())
    del content["model"]["weights"]
    file.write_text(json.dumps(content))
    swap(copy / "base")
    assert read_base(copy / "lora").seed == 3


def test_a_base_that_is_half_there_is_not_called_another(copy: Path) -> None:
    """Its fingerprint would be that of the half; whoever loads it names the missing file."""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "base" / "model.safetensors").rename(copy / "base" / "model-1.safetensors")
    (copy / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_fingerprint(copy / "base") is None
    with pytest.raises(LoadingError, match="model-2.safetensors"):
        load_model(copy / "lora")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 7}, "base.json: model must be an object with path or hub, found 7"),
        ({"model": {"path": 7}}, "base.json: model must be an object with path or hub"),
        ({"model": {}}, "base.json: model must be an object with path or hub"),
        ({"model": {"hub": "../up"}}, "base.json: model must name a repository on the Hub, found '../up'"),
        ({"model": None}, "base.json must name model, or language_model and vision_tower"),
        ({"seed": "3"}, "base.json: seed must be a whole number of 0 or more, found '3'"),
        ({"seed": -1}, "base.json: seed must be a whole number"),
        ({"seed": True}, "base.json: seed must be a whole number"),
    ],
)
def test_odd_entries_are_named(copy: Path, change: dict[str, Any], message: str) -> None:
    file = copy / "lora" / "base.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(LoadingError, match=message):
        read_base(copy / "lora")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe{}", b"[" * 9000])
def test_torn_files_are_named(copy: Path, content: bytes) -> None:
    for name in ("base.json", "config.json"):
        whole = (copy / "lora" / name).read_bytes()
        (copy / "lora" / name).write_bytes(content)
        with pytest.raises(LoadingError, match=name):
            load_model(copy / "lora")
        (copy / "lora" / name).write_bytes(whole)
