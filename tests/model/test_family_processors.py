"""Processors of other families where torchvision is missing: images work, and what is saved is read again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, PROCESSORS, have_num2words, stock_model, write_family
from transformers.utils import is_torchvision_available

from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.assembling import processor_of
from llava_prumerge.model.chat import ChatProcessor
from llava_prumerge.model.family_processors import VIDEOS, read_processor
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.weight_files import LoadingError

WITH_VIDEOS = [name for name, (made, *_) in PROCESSORS.items() if VIDEOS in made.get_attributes()]
missing = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here: processors are transformers' own")


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8))


@missing
@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_images_work_and_a_saved_processor_is_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_num2words(monkeypatch)
    folder = write_family(tmp_path / "model", name)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings[VIDEOS] = {"video_processor_type": "SomeVideoProcessor", "fps": 3}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    model, processor = load_model(folder)
    asked = [("w5 w6", [photo()]), ("w7", [])]
    made = ChatProcessor(processor, model.config, "vicuna_v1")(asked)
    assert made["input_ids"].shape[0] == 2 and int((made["input_ids"] == model.config.image_token_id).sum()) > 0
    if name == "smolvlm":
        with pytest.raises(InputError, match="videos of this model need torchvision"):
            getattr(processor, VIDEOS)([[photo()]])
    else:
        frames = getattr(processor, VIDEOS)([[photo(), photo()]])
        assert torch.isfinite(frames["pixel_values_videos"]).all() and getattr(processor, VIDEOS).fps == 3
    processor.save_pretrained(tmp_path / "again")
    stock_model(name).config.save_pretrained(tmp_path / "again")
    again = read_processor(tmp_path / "again", model.config)
    assert getattr(again, VIDEOS).settings == settings[VIDEOS]
    for key, value in ChatProcessor(again, model.config, "vicuna_v1")(asked).items():
        assert torch.equal(value, made[key])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_model_without_a_processor_loads(name: str, tmp_path: Path) -> None:
    stock_model(name).save_pretrained(tmp_path)
    model, processor = load_model(tmp_path, reduction={"vision": {"name": "prumerge_plus"}})
    assert processor is None and model.model.reducer.name == "prumerge_plus"


@pytest.mark.parametrize(("name", "package"), [("smolvlm", "num2words"), ("mistral3", "torchvision")])
def test_a_processor_that_needs_another_package_says_so_in_one_line(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *rest: None if wanted == package else wanted)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(LoadingError, match=f"the processor of {name} needs {package}: pip install ") as told:
        processor_of(tmp_path, FAMILIES[name]()[0])
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["llava_next", "gemma3", "idefics3", "paligemma"])
def test_batches_are_padded_on_the_left_and_alike_alone(name: str, tmp_path: Path) -> None:
    model, processor = load_model(write_family(tmp_path, name))
    chat = ChatProcessor(processor, model.config, "vicuna_v1")
    both, alone = chat([("w5", [photo()]), ("w5 w6 w7", [photo()])]), chat([("w5", [photo()])])
    length = alone["input_ids"].shape[1]
    assert torch.equal(both["input_ids"][:1, -length:], alone["input_ids"])
    assert both["attention_mask"][0].tolist() == [0] * (both["input_ids"].shape[1] - length) + [1] * length
    short = len(chat.ids("w5", 1))
    assert 0 < short < length
