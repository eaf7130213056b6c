"""Records with videos: frames, placeholders and masks of every family that takes them, losses of the stock model, training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train.family_world import TRAINED, give_videos, given, write_videos
from train.launching import losses_of
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import is_torchvision_available

from llava_prumerge.data import prepare
from llava_prumerge.data.collator import Collator
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.processed_images import ProcessedImages
from llava_prumerge.data.records import NO_VIDEOS, RecordError
from llava_prumerge.data.videos import VideoFolder
from llava_prumerge.model.assembling import processor_of
from llava_prumerge.model.families import family_of
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.part_names import part_names
from llava_prumerge.model.reading import reader_of
from llava_prumerge.text.chat_templates import OWN
from llava_prumerge.train.arguments import RecipeError, load_arguments
from llava_prumerge.train.assembly import build_dataset
from llava_prumerge.train.run import main

FRAMES = 4
TAKEN = [0, 3, 7, 11]
WITH_VIDEOS = [name for name in TRAINED if family_of(name).videos is not None]
every = pytest.mark.parametrize("name", WITH_VIDEOS)


@pytest.fixture(scope="module")
def films(families: Path) -> Path:
    """The families' folder with records of videos, and settings for videos beside each processor's."""
    write_videos(families)
    for name in WITH_VIDEOS:
        give_videos(families / name, name)
    return families


def dataset_of(films: Path, name: str) -> LlavaDataset:
    config = AutoConfig.from_pretrained(films / name)
    reader = reader_of(processor_of(films / name, config), config, OWN)
    return LlavaDataset(
        films / "films.json", films / "images", reader.processor.tokenizer, ProcessedImages(reader.processor, reader.beside),
        reader.template, image_token_id=reader.image_token_id, image_tokens=10, video_token_id=reader.video_token_id,
        videos=VideoFolder(str(films / "images"), FRAMES) if reader.takes_videos else None,
    )  # fmt: skip


def frames_of(films: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(films / "images" / "film" / f"{number}.png").convert("RGB")) for number in TAKEN]


def processed(films: Path, processor: Any, record: dict[str, Any], turns: int, ask: bool) -> dict[str, Any]:
    """The stock processor's inputs of a record's first turns, rendered by the stock template."""
    parts = []
    for turn in record["conversations"][:turns]:
        text = turn["value"]
        kinds = ["image"] * (text.count("<image>") if record["image"] else 0)
        kinds += ["video"] * (text.count("<video>") or (not record["image"] and text.count("<image>")))
        text = text.replace("<image>\n", "").replace("<video>\n", "")
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
        parts.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    text = processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=ask)
    told = {"total_num_frames": 12, "fps": None, "duration": None, "frames_indices": list(TAKEN)}
    shown: dict[str, Any] = {"images": [Image.open(films / "images" / path).convert("RGB") for path in record["image"]]}
    shown |= (
        {"videos": [frames_of(films)], "video_metadata": [told], "do_sample_frames": False} if record["video"] else {}
    )
    return dict(
        processor(text=[text], return_tensors="pt", **{key: value for key, value in shown.items() if value != []})
    )


@every
def test_items_are_what_the_stock_processor_makes(films: Path, name: str) -> None:
    """Ids and pixels of whole conversations; loss on what stands behind each prompt, up to the answer's end."""
    dataset = dataset_of(films, name)
    processor, tokenizer = dataset.preprocessor.processor, dataset.tokenizer
    for index in range(len(dataset)):
        item, record = dataset[index], dataset.rows[index]
        stock = processed(films, processor, record, len(record["conversations"]), ask=False)
        assert item["input_ids"].tolist() == stock["input_ids"][0].tolist()
        for key in set(stock) - {"input_ids", "attention_mask"}:
            found = item["pixel_values" if key == "pixel_values_images" else key]
            wanted = torch.as_tensor(stock[key])
            torch.testing.assert_close(found, wanted[0] if "token_type" in key else wanted)
        expected = torch.full_like(item["labels"], -100)
        end = tokenizer.convert_tokens_to_ids(dataset.template.end)
        for turns in range(1, len(record["conversations"]), 2):
            begin = processed(films, processor, record, turns, ask=True)["input_ids"].shape[1]
            stop = begin + item["input_ids"][begin:].tolist().index(end) + 1
            expected[begin:stop] = item["input_ids"][begin:stop]
        assert item["labels"].tolist() == expected.tolist()
        shows = "pixel_values" if name == "internvl" else "pixel_values_videos"
        assert (shows in item) == bool(record["video"])


@every
@torch.no_grad()
def test_the_loss_is_the_stock_models_and_a_method_acts(films: Path, name: str) -> None:
    dataset = dataset_of(films, name)
    batch = Collator(dataset.tokenizer.pad_token_id)([dataset[index] for index in range(4)])
    batch.pop("ids")
    stock = AutoModelForImageTextToText.from_pretrained(films / name)
    plain, _ = load_model(films / name, device="cpu")
    assert float(plain(**batch).loss) == pytest.approx(float(stock(**batch).loss), rel=1e-5)
    reduced, _ = load_model(films / name, reduction={"vision": {"name": "uniform", "budget": 2}}, device="cpu")
    assert math.isfinite(float(reduced(**batch).loss))
    assert 0 < reduced.reduction_stats()["kept_mean"] < plain.reduction_stats()["kept_mean"]


@every
def test_a_video_alone_reaches_all_that_an_image_does(films: Path, name: str) -> None:
    """Ranks reduce the gradients of the same parameters, whatever their batches show."""
    dataset = dataset_of(films, name)
    model, _ = load_model(films / name, reduction={"vision": {"name": "uniform", "budget": 2}}, device="cpu")
    role, reached = part_names(model).role, []
    for index in (0, 1, 3):
        model.zero_grad()
        batch = Collator(dataset.tokenizer.pad_token_id)([dataset[index]])
        batch.pop("ids")
        model.train()(**batch).loss.backward()
        given = {key for key, value in model.named_parameters() if value.grad is not None}
        reached.append({key for key in given if role(key) == "projector"})
    assert reached[0] == reached[1] == reached[2] and reached[0]


@pytest.mark.parametrize("name", ["video_llava", "internvl", "qwen3_vl"])
def test_lora_trains_on_videos(world, films: Path, tmp_path: Path, name: str) -> None:
    more = {"data": str(films / "films.json"), "videos": str(films / "images"), "frames": FRAMES, "save_steps": 0}
    assert main(world.recipe("lora", tmp_path / "run", **given(films, name) | more)) == 0
    told = losses_of(tmp_path / "run")
    assert all(map(math.isfinite, told)) and told[-1] < told[0] - 0.05


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_the_check_counts_what_training_makes(
    films: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens of images of any size, and of videos, are said by the model that the recipe names."""
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    recipe = [f"model={films / name}", f"data={films / 'films.json'}", f"images={films / 'images'}", "template=own"]
    report = tmp_path / "report.json"
    words = ["check", *recipe, f"frames={FRAMES}", "--workers", "1", "--report", str(report)]
    assert prepare.main(words) == 0
    found = json.loads(report.read_text())
    items = [dataset_of(films, name)[index] for index in range(4)]
    assert (found["bad"], found["images"], found["videos"], found["text_only"]) == (0, 1, 3, 1)
    assert found["tokens"] == sum(len(item["input_ids"]) for item in items)
    assert found["supervised_tokens"] == sum(int((item["labels"] != -100).sum()) for item in items)
    assert "1 images, 3 videos, 1 without image" in capsys.readouterr().out
    last = films / "images" / "film" / "11.png"
    whole = last.read_bytes()
    last.write_bytes(b"no image")
    try:
        assert prepare.main(words) == 1, "a changed frame is looked at again"
        assert json.loads(report.read_text())["faults"]["not an image"]["count"] == 3
    finally:
        last.write_bytes(whole)


def test_the_check_of_a_family_without_videos(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    recipe = [f"model={films / 'gemma3'}", f"data={films / 'films.json'}", f"images={films / 'images'}", "template=own"]
    assert prepare.main(["check", *recipe, "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert "4 records, 3 bad" in out and f"fault: 3 x video\n    film-0 (record 0): {NO_VIDEOS}" in out
    assert prepare.main(["check", *recipe, "frames=0"]) == 2
    assert "frames=0: must be at least 1 and at most 1,024" in capsys.readouterr().err


def test_a_tower_that_takes_so_many_frames_says_so(world, films: Path, tmp_path: Path) -> None:
    """As one with attention over time does."""
    more = {"data": str(films / "films.json"), "frames": FRAMES}
    arguments = load_arguments(world.recipe("lora", tmp_path / "run", **given(films, "video_llava") | more))
    config = AutoConfig.from_pretrained(films / "video_llava")
    processor = processor_of(films / "video_llava", config)
    config.vision_config.num_frames = FRAMES
    assert len(build_dataset(arguments, config, processor)) == 4
    config.vision_config.num_frames = 8
    with pytest.raises(RecipeError, match="frames=4: the model's tower takes 8 frames of each video"):
        build_dataset(arguments, config, processor)
    arguments.data = str(films / "records.json")
    assert len(build_dataset(arguments, config, processor)) == 4, "without videos it is no matter"


@pytest.mark.parametrize("name", ["llava_next", "gemma3"])
def test_families_without_videos_say_so(films: Path, name: str) -> None:
    dataset = dataset_of(films, name)
    with pytest.raises(RecordError, match="takes images alone") as caught:
        dataset[0]
    assert caught.value.reason == NO_VIDEOS and caught.value.sample_id == "film-0"


@pytest.mark.skipif(not is_torchvision_available(), reason="transformers' processors for videos need torchvision")
@every
def test_frames_are_those_of_the_stock_video_processor(films: Path, name: str) -> None:
    """Sizes to the pixel; values within two of 255, as the libraries round otherwise when they resize."""
    from transformers import AutoVideoProcessor

    from llava_prumerge.model.frames import FrameProcessor

    settings = json.loads((films / name / "processor_config.json").read_text())["video_processor"]
    stock = AutoVideoProcessor.from_pretrained(films / name)
    for frames in (frames_of(films), frames_of(films)[:3]):
        for given_settings in (settings, {}):
            theirs = (stock if given_settings else type(stock)())(
                videos=[np.stack(frames)], do_sample_frames=False, return_tensors="pt"
            )
            ours = FrameProcessor(given_settings, True, family_of(name).videos)([frames])
            assert set(ours) - {"video_metadata"} == set(theirs)
            for key in theirs:
                torch.testing.assert_close(ours[key], torch.as_tensor(theirs[key]), atol=0.035, rtol=0)
