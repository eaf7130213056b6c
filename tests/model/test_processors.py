"""The processor that a loaded model comes with: chat template, padding of batches, transformers' own pipeline, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from published_layouts import sentencepiece_model
from tiny_llava import PATCHES, tiny_config
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessorPil, pipeline

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.model.adapters import save_complete
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.processors import make_processor, read_tokenizer, save_processor, set_template
from llava_prumerge.text.templates import chat_template

QUESTIONS = ("the fox?", "What is it that jumps  over the lazy dog, and why?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it, whose tokenizer came as a sentencepiece model."""
    place = tmp_path_factory.mktemp("checkpoint")
    (place / "source").mkdir()
    (place / "source" / "tokenizer.model").write_bytes(sentencepiece_model())
    tokenizer = read_tokenizer(place / "source")
    values = tiny_config().to_dict()
    values |= {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "reduction": {"vision": {"name": "prumerge"}},
    }
    values["text_config"] |= {
        "vocab_size": 384,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    for key in ("model_type", "architectures"):
        values.pop(key, None)
    torch.manual_seed(0)
    model = PruMergeLlavaForConditionalGeneration(PruMergeLlavaConfig(**values)).eval()
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    (place / "whole").mkdir()
    save_complete(model, place / "whole", None, make_processor(tokenizer, pixels, model.config))
    return place / "whole"


def picture(seed: int = 0) -> Image.Image:
    return Image.effect_noise((40 + seed, 30), 90).convert("RGB")


def messages(question: str, image: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def test_the_prompt_of_a_loaded_processor_is_that_of_evaluation(folder: Path) -> None:
    model, processor = load_model(folder, device="cpu")
    stock = AutoProcessor.from_pretrained(folder)
    for question in QUESTIONS:
        wanted = encode(processor.tokenizer, prompt("vicuna_v1", question), model.config.image_token_id, PATCHES)
        for one in (processor, stock):
            text = one.apply_chat_template(messages(question, picture()), add_generation_prompt=True)
            assert text == prompt("vicuna_v1", question)
            assert one(images=picture(), text=text)["input_ids"][0] == wanted
            told = one.apply_chat_template(
                messages(question, picture()), add_generation_prompt=True, tokenize=True, return_dict=True
            )
            assert told["input_ids"][0] == wanted


def test_batches_of_unequal_prompts_answer_as_each_alone(folder: Path) -> None:
    model, processor = load_model(folder, device="cpu")
    images, texts = [picture(0), picture(9)], [prompt("vicuna_v1", question) for question in QUESTIONS]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and (batch["attention_mask"][:, -1] == 1).all()  # on the left
    answers = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for image, text, answer in zip(images, texts, answers, strict=True):
        alone = processor(images=image, text=text, return_tensors="pt")
        single = model.generate(**alone, max_new_tokens=6, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert answer[: len(single)].tolist() == single.tolist()


def test_the_pipeline_takes_messages(folder: Path) -> None:
    model, processor = load_model(folder, device="cpu")
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    talks = [messages(question, picture()) for question in QUESTIONS]
    plain = {
        "max_new_tokens": 4,
        "do_sample": False,
        "suppress_tokens": list(range(3, 259)),
    }  # single bytes are no text
    answers = ask(text=talks, return_full_text=False, generate_kwargs=plain)
    for question, (answer,) in zip(QUESTIONS, answers, strict=True):
        inputs = processor(images=picture(), text=prompt("vicuna_v1", question), return_tensors="pt")
        ids = model.generate(**inputs, **plain)[0, inputs["input_ids"].shape[1] :]
        assert answer["generated_text"] == processor.tokenizer.decode(ids, skip_special_tokens=True) != ""


@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json"]
)
def test_a_template_that_a_folder_brings_is_kept(file: str, folder: Path, tmp_path: Path) -> None:
    mine = "{% for message in messages %}<image>{{ message['content'] }}{% endfor %}"
    for path in folder.iterdir():
        if not path.name.startswith("chat_template"):
            (tmp_path / path.name).symlink_to(path)
    for name in ("tokenizer_config.json", "processor_config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("chat_template", None)
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(values | ({"chat_template": mine} if name == file else {})))
    if file.startswith("chat_template"):
        (tmp_path / file).write_text(mine if file.endswith("jinja") else json.dumps({"chat_template": mine}))
    _, processor = load_model(tmp_path, device="cpu")
    assert processor.chat_template == processor.tokenizer.chat_template == mine
    set_template(processor, "vicuna_v1")  # what training with the default does
    assert processor.chat_template == mine
    set_template(processor, "plain")
    assert processor.chat_template == mine
    set_template(processor, "chatml_direct")
    assert processor.chat_template == processor.tokenizer.chat_template == chat_template("chatml_direct")
    set_template(processor, "vicuna_v1")  # one of ours makes room for another
    assert processor.chat_template == chat_template("vicuna_v1")


def test_a_text_models_template_gets_a_place_for_images(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    for template, shown in (("{{ messages[0]['content'] }}", "<image>\nWhat?"), ("{{ '<image>' }}", "<image>")):
        (tmp_path / "chat_template.jinja").write_text(template)
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
        assert read_tokenizer(tmp_path).apply_chat_template(asked, tokenize=False) == shown
    (tmp_path / "chat_template.jinja").unlink()
    assert read_tokenizer(tmp_path).chat_template is None


def test_the_files_are_those_that_every_release_reads(folder: Path, tmp_path: Path) -> None:
    """transformers 5's own single processor_config.json is not."""
    settings = json.loads((folder / "processor_config.json").read_text())
    assert settings == {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 7,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    assert pixels["image_processor_type"] == "LlavaImageProcessor" and pixels["do_pad"] is True
    names = {"chat_template.jinja", "chat_template.json", "tokenizer.json", "tokenizer_config.json"}
    assert names <= {file.name for file in folder.iterdir()}
    _, processor = load_model(folder, device="cpu")
    save_processor(processor, tmp_path, class_by_model=True)
    assert "image_processor_type" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert AutoImageProcessor.from_pretrained(folder, backend="pil").to_dict()["do_pad"] is True
